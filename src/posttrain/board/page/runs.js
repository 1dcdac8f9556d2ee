// The table of runs: filter, sort, columns, selection.

import {
  announce,
  button,
  el,
  empty,
  inPortions,
  later,
  put,
  putIf,
  setText,
  toggle,
} from "./dom.js";
import {count} from "./format.js";
import {DEFAULT, column, sorted} from "./columns.js";
import {filtered} from "./filter.js";
import {columnPicker} from "./picker.js";
import {cell, nameCell} from "./runcells.js";
import {address, allRuns, board, param, route, select, selected, setParams} from "./state.js";

const EXAMPLE = "state:running method:grpo trainer.learning_rate>1e-4 eval_accuracy>=0.5";

export function show(host) {
  const rows = new Map(); // run ID -> {run, key, row}: a row is made again only if something in it changed
  let shown = [];
  let lastClicked = null;
  let order = "";

  const field = el("input", {
    type: "search",
    id: "filter",
    placeholder: "Filter: words, or e.g. state:running reward>0.5",
    "aria-label": "Filter of runs",
    "aria-describedby": "filter-help",
    value: param("q"),
    autocomplete: "off",
    spellcheck: "false",
    oninput: later(() => setParams({q: field.value.trim()}), 60),
  });
  const note = el("p", {class: "small muted", id: "found", role: "status"});
  const help = el(
    "details",
    {class: "small help"},
    el("summary", {}, "Conditions"),
    el(
      "div",
      {id: "filter-help"},
      el(
        "p",
        {},
        "Words are looked for in names, settings, metrics’ names, states and errors. All conditions have to hold.",
      ),
      el("p", {}, el("code", {}, EXAMPLE)),
      el(
        "p",
        {},
        "Names: any metric, any setting (its last part is enough unless a metric has that name), and name, group, state, method, model, step, metric, value, bytes, seconds, error. ",
        el("code", {}, ":"),
        " contains, ",
        el("code", {}, "="),
        " equals, ",
        el("code", {}, "!= > >= < <="),
        "; ",
        el("code", {}, "state:failed,killed"),
        " is either; ",
        el("code", {}, "-word"),
        " is without; ",
        el("code", {}, '"two words"'),
        ".",
      ),
    ),
  );
  const selection = el("div", {class: "actions"});
  const head = el("thead"),
    body = el("tbody");
  const table = el(
    "table",
    {class: "runs-table"},
    el("caption", {class: "sr"}, "Runs"),
    head,
    body,
  );
  const box = el(
    "div",
    {class: "card scroll", tabindex: 0, role: "region", "aria-label": "Table of runs"},
    table,
  );
  const nothing = el("div");
  const picker = columnPicker();
  const every = el("span", {class: "phone"});
  const sorting = el("select", {
    "aria-label": "Sort by",
    onchange: (event) => setParams({sort: event.target.value}),
  });
  put(
    host,
    el(
      "div",
      {class: "controls"},
      field,
      el("label", {class: "field phone"}, el("span", {}, "Sort by"), sorting),
      button("Columns", picker.open),
      selection,
    ),
    el("div", {class: "under"}, note, every, help),
    box,
    nothing,
    picker.dialog,
  );
  update([]);

  function columns() {
    const keys = route.params.getAll("col");
    return (keys.length ? keys : DEFAULT).map(column).filter(Boolean);
  }

  function sortedBy() {
    const text = param("sort", "-updated");
    const descending = text.startsWith("-");
    return {chosen: column(descending ? text.slice(1) : text) ?? column("updated"), descending};
  }

  function update(reasons) {
    if (document.activeElement !== field && field.value.trim() !== param("q"))
      field.value = param("q");
    const result = filtered(allRuns(), param("q"));
    const {chosen, descending} = sortedBy();
    shown = sorted(result.runs, chosen, descending);
    const all = board.runs.size;
    setText(
      note,
      result.unknown.length
        ? `No run has a setting or metric named ${result.unknown.join(", ")}.`
        : shown.length < all
          ? `${shown.length} of ${count(all, "run")}`
          : count(all, "run"),
    );
    drawHead(chosen, descending);
    drawActions();
    const layout = columns()
      .map(({key}) => key)
      .join("\n");
    const now = `${layout}\n\n${shown.map(({id}) => id).join("\n")}`;
    if (now === order) {
      for (const run of shown) if (rows.get(run.id)?.row.isConnected) renew(run, layout);
    } else {
      const focused = document.activeElement?.closest?.("tr")?.dataset.run;
      const role = document.activeElement?.dataset?.role;
      order = now;
      inPortions(body, shown, (run) => rowOf(run, layout), 50, "tr");
      // A row that was moved has lost the focus.
      if (focused !== undefined && role)
        rows.get(focused)?.row.querySelector(`[data-role="${role}"]`)?.focus();
    }
    for (const id of rows.keys()) if (!board.runs.has(id)) rows.delete(id);
    box.hidden = !shown.length;
    put(
      nothing,
      shown.length
        ? []
        : all
          ? empty(
              "No run meets these conditions",
              button("Clear the filter", () => {
                field.value = "";
                setParams({q: null});
              }),
            )
          : empty(
              board.complete ? "No runs yet" : "Reading the folders…",
              board.complete
                ? `There is no run in ${board.root}. Runs appear here when training starts.`
                : "",
            ),
    );
    if (reasons.includes("q")) announce(note.textContent);
  }

  function drawHead(chosen, descending) {
    const marked = new Set(selected());
    const many = shown.filter(({id}) => marked.has(id)).length;
    const all = el("input", {
      type: "checkbox",
      "aria-label": `Select all ${count(shown.length, "run")} shown`,
      "data-role": "all",
      onchange: (event) =>
        select(
          shown.map(({id}) => id),
          event.target.checked,
        ),
    });
    all.checked = many > 0 && many === shown.length;
    all.indeterminate = many > 0 && many < shown.length;
    const list = [column("name"), ...columns()];
    const mark = JSON.stringify([
      list.map(({key}) => key),
      chosen.key,
      descending,
      many,
      shown.length,
    ]);
    putIf(head, mark, () =>
      el(
        "tr",
        {},
        el("th", {class: "pick"}, all),
        list.map(({key, title, number: right, down}) => {
          const here = key === chosen.key;
          const next = here ? !descending : Boolean(down);
          return el(
            "th",
            {
              scope: "col",
              class: right ? "right" : null,
              "aria-sort": here ? (descending ? "descending" : "ascending") : null,
            },
            button(
              [
                title,
                el(
                  "span",
                  {class: "arrow", "aria-hidden": "true"},
                  here ? (descending ? "↓" : "↑") : "",
                ),
              ],
              () => setParams({sort: `${next ? "-" : ""}${key}`}),
              {class: "sort", "data-role": `sort-${key}`, title: `Sort by ${title}`},
            ),
          );
        }),
      ),
    );
    const options = list.flatMap(({key, title, down}) => {
      const both = [
        [key, `${title} ↑`],
        [`-${key}`, `${title} ↓`],
      ];
      return down ? both.reverse() : both;
    });
    putIf(sorting, mark, () =>
      options.map(([value, text]) =>
        el("option", {value, selected: value === `${descending ? "-" : ""}${chosen.key}`}, text),
      ),
    );
  }

  function drawActions() {
    // The box in the head of the table, which the cards of a phone do not have.
    const marked = new Set(selected());
    const whole = shown.length > 0 && shown.every(({id}) => marked.has(id));
    putIf(every, `${whole} ${shown.map(({id}) => id).join("\n")}`, () =>
      toggle(
        "Select all shown",
        whole,
        (on) =>
          select(
            shown.map(({id}) => id),
            on,
          ),
        {"data-role": "every"},
      ),
    );
    const ids = selected().filter((id) => board.runs.has(id));
    putIf(selection, ids.join("\n"), () =>
      ids.length
        ? [
            el(
              "a",
              {class: "button main", "data-role": "curves", href: address("curves")},
              `Curves of ${count(ids.length, "run")}`,
            ),
            el(
              "a",
              {class: "button", "data-role": "settings", href: address("settings")},
              "Settings",
            ),
          ]
        : el("span", {class: "muted small hint"}, "Select runs to compare them"),
    );
  }

  function rowOf(run, layout) {
    renew(run, layout);
    return rows.get(run.id).row;
  }

  function renew(run, layout) {
    const marked = selected().includes(run.id);
    const cached = rows.get(run.id);
    if (cached && cached.run === run && cached.layout === layout) {
      if (cached.marked !== marked) {
        cached.row.querySelector("input").checked = marked;
        cached.row.classList.toggle("marked", marked);
        cached.marked = marked;
      }
      return;
    }
    const row = cached?.row ?? el("tr", {"data-run": run.id});
    const role = row.contains(document.activeElement) ? document.activeElement.dataset.role : null;
    const open = row.querySelector("details")?.open;
    put(row, cellsOf(run, marked));
    row.classList.toggle("marked", marked);
    if (open) row.querySelector("details")?.setAttribute("open", "");
    if (role) row.querySelector(`[data-role="${role}"]`)?.focus();
    rows.set(run.id, {run, row, marked, layout});
  }

  function cellsOf(run, marked) {
    const box = el("input", {
      type: "checkbox",
      "data-role": "pick",
      "aria-label": `Select ${run.name}`,
      onclick: (event) => pick(run, event),
    });
    box.checked = marked;
    return [el("td", {class: "pick"}, box), nameCell(run), columns().map((of) => cell(run, of))];
  }

  /** With Shift, everything between the run that was clicked last and this one. */
  function pick(run, event) {
    const ids = shown.map(({id}) => id);
    const [from, to] = [ids.indexOf(lastClicked), ids.indexOf(run.id)];
    lastClicked = run.id;
    select(
      event.shiftKey && from >= 0 && to >= 0
        ? ids.slice(Math.min(from, to), Math.max(from, to) + 1)
        : [run.id],
      event.target.checked,
    );
  }

  return {update};
}
