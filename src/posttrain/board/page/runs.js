// The table of runs: filter, sort, columns, selection.

import {announce, button, el, empty, inPortions, later, put, putIf, setText, toggle} from "./dom.js";
import {count, date, duration, number} from "./format.js";
import {DEFAULT, FIXED, column, offered, sorted} from "./columns.js";
import {filtered} from "./filter.js";
import {address, allRuns, board, isRunning, param, route, select, selected, setParams} from "./state.js";

const EXAMPLE = "state:running method:grpo trainer.learning_rate>1e-4 eval_accuracy>=0.5";

export function show(host) {
  const rows = new Map(); // run ID -> {run, key, row}: a row is made again only if something in it changed
  let shown = [];
  let lastClicked = null;
  let order = "";

  const field = el("input", {
    type: "search", id: "filter", placeholder: "Filter: words, or e.g. state:running reward>0.5",
    "aria-label": "Filter of runs", "aria-describedby": "filter-help", value: param("q"), autocomplete: "off", spellcheck: "false",
    oninput: later(() => setParams({q: field.value.trim()}), 60),
  });
  const note = el("p", {class: "small muted", id: "found", role: "status"});
  const help = el("details", {class: "small help"}, el("summary", {}, "Conditions"),
    el("div", {id: "filter-help"},
      el("p", {}, "Words are looked for in names, settings, metrics’ names, states and errors. All conditions have to hold."),
      el("p", {}, el("code", {}, EXAMPLE)),
      el("p", {}, "Names: any metric, any setting (its last part is enough unless a metric has that name), and name, group, state, method, model, step, metric, value, bytes, seconds, error. ",
        el("code", {}, ":"), " contains, ", el("code", {}, "="), " equals, ", el("code", {}, "!= > >= < <="),
        "; ", el("code", {}, "state:failed,killed"), " is either; ", el("code", {}, "-word"), " is without; ", el("code", {}, '"two words"'), ".")));
  const selection = el("div", {class: "actions"});
  const head = el("thead"), body = el("tbody");
  const table = el("table", {class: "runs-table"}, el("caption", {class: "sr"}, "Runs"), head, body);
  const box = el("div", {class: "card scroll", tabindex: 0, role: "region", "aria-label": "Table of runs"}, table);
  const nothing = el("div");
  const picker = columnPicker();
  const every = el("span", {class: "phone"});
  const sorting = el("select", {"aria-label": "Sort by", onchange: (event) => setParams({sort: event.target.value})});
  put(host,
    el("div", {class: "controls"}, field, el("label", {class: "field phone"}, el("span", {}, "Sort by"), sorting),
      button("Columns", picker.open), selection),
    el("div", {class: "under"}, note, every, help), box, nothing, picker.dialog);
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
    if (document.activeElement !== field && field.value.trim() !== param("q")) field.value = param("q");
    const result = filtered(allRuns(), param("q"));
    const {chosen, descending} = sortedBy();
    shown = sorted(result.runs, chosen, descending);
    const all = board.runs.size;
    setText(note, result.unknown.length
      ? `No run has a setting or metric named ${result.unknown.join(", ")}.`
      : shown.length < all ? `${shown.length} of ${count(all, "run")}` : count(all, "run"));
    drawHead(chosen, descending);
    drawActions();
    const layout = columns().map(({key}) => key).join("\n");
    const now = `${layout}\n\n${shown.map(({id}) => id).join("\n")}`;
    if (now === order) {
      for (const run of shown) if (rows.get(run.id)?.row.isConnected) renew(run, layout);
    } else {
      const focused = document.activeElement?.closest?.("tr")?.dataset.run;
      const role = document.activeElement?.dataset?.role;
      order = now;
      inPortions(body, shown, (run) => rowOf(run, layout), 50, "tr");
      // A row that was moved has lost the focus.
      if (focused !== undefined && role) rows.get(focused)?.row.querySelector(`[data-role="${role}"]`)?.focus();
    }
    for (const id of rows.keys()) if (!board.runs.has(id)) rows.delete(id);
    box.hidden = !shown.length;
    put(nothing, shown.length ? [] : all
      ? empty("No run meets these conditions", button("Clear the filter", () => { field.value = ""; setParams({q: null}); }))
      : empty(board.complete ? "No runs yet" : "Reading the folders…", board.complete ? `There is no run in ${board.root}. Runs appear here when training starts.` : ""));
    if (reasons.includes("q")) announce(note.textContent);
  }

  function drawHead(chosen, descending) {
    const marked = new Set(selected());
    const many = shown.filter(({id}) => marked.has(id)).length;
    const all = el("input", {type: "checkbox", "aria-label": `Select all ${count(shown.length, "run")} shown`, "data-role": "all",
      onchange: (event) => select(shown.map(({id}) => id), event.target.checked)});
    all.checked = many > 0 && many === shown.length;
    all.indeterminate = many > 0 && many < shown.length;
    const list = [column("name"), ...columns()];
    const mark = JSON.stringify([list.map(({key}) => key), chosen.key, descending, many, shown.length]);
    putIf(head, mark, () => el("tr", {}, el("th", {class: "pick"}, all), list.map(({key, title, number: right, down}) => {
      const here = key === chosen.key;
      const next = here ? !descending : Boolean(down);
      return el("th", {scope: "col", class: right ? "right" : null, "aria-sort": here ? descending ? "descending" : "ascending" : null},
        button([title, el("span", {class: "arrow", "aria-hidden": "true"}, here ? descending ? "↓" : "↑" : "")],
          () => setParams({sort: `${next ? "-" : ""}${key}`}), {class: "sort", "data-role": `sort-${key}`, title: `Sort by ${title}`}));
    })));
    const options = list.flatMap(({key, title, down}) => {
      const both = [[key, `${title} ↑`], [`-${key}`, `${title} ↓`]];
      return down ? both.reverse() : both;
    });
    putIf(sorting, mark, () => options.map(([value, text]) => el("option", {value, selected: value === `${descending ? "-" : ""}${chosen.key}`}, text)));
  }

  function drawActions() {
    // The box in the head of the table, which the cards of a phone do not have.
    const marked = new Set(selected());
    const whole = shown.length > 0 && shown.every(({id}) => marked.has(id));
    putIf(every, `${whole} ${shown.map(({id}) => id).join("\n")}`, () => toggle("Select all shown", whole, (on) => select(shown.map(({id}) => id), on), {"data-role": "every"}));
    const ids = selected().filter((id) => board.runs.has(id));
    putIf(selection, ids.join("\n"), () => ids.length ? [
      el("a", {class: "button main", "data-role": "curves", href: address("curves")}, `Curves of ${count(ids.length, "run")}`),
      el("a", {class: "button", "data-role": "settings", href: address("settings")}, "Settings"),
    ] : el("span", {class: "muted small hint"}, "Select runs to compare them"));
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
    const box = el("input", {type: "checkbox", "data-role": "pick", "aria-label": `Select ${run.name}`, onclick: (event) => pick(run, event)});
    box.checked = marked;
    return [el("td", {class: "pick"}, box), nameCell(run), columns().map((of) => cell(run, of))];
  }

  /** With Shift, everything between the run that was clicked last and this one. */
  function pick(run, event) {
    const ids = shown.map(({id}) => id);
    const [from, to] = [ids.indexOf(lastClicked), ids.indexOf(run.id)];
    lastClicked = run.id;
    select(event.shiftKey && from >= 0 && to >= 0
      ? ids.slice(Math.min(from, to), Math.max(from, to) + 1) : [run.id], event.target.checked);
  }

  return {update};
}

function nameCell(run) {
  const params = new URLSearchParams([["run", run.id]]);
  return el("th", {scope: "row", class: "run-name"},
    run.group ? el("span", {class: "group"}, `${run.group}/`) : null,
    el("a", {href: `#/curves?${params}`, "data-role": "open", title: run.id}, run.name),
    run.error ? el("details", {class: "error"}, el("summary", {"data-role": "error"}, run.error.split("\n")[0]), el("pre", {}, run.error)) : null);
}

function cell(run, of) {
  if (of.key === "state") return el("td", {class: "cell-state", "data-label": "state"}, stateOf(run));
  if (of.key === "progress") return el("td", {class: "cell-progress", "data-label": "progress"}, progressOf(run));
  if (of.key === "metric") {
    return el("td", {class: "cell-metric", "data-label": run.metric ?? "metric"}, run.metric === null ? "–"
      : [el("b", {}, number(run.value)), el("span", {class: "muted"}, ` ${run.metric}`)]);
  }
  const text = of.text ? of.text(run) : String(of.value(run) ?? "–");
  const hint = of.hint ? of.hint(run) : ["updated", "started"].includes(of.key) ? date(of.value(run)) : null;
  return el("td", {class: of.number ? "right" : null, "data-label": of.title, "data-extra": of.key.includes(":"), title: hint}, el("span", {class: "clip"}, text));
}

export const stateOf = (run) => el("span", {class: `state ${run.state}`}, run.state);

export function progressOf(run) {
  const steps = run.num_steps ? `${run.step}/${run.num_steps}` : String(run.step);
  if (!isRunning(run)) return el("span", {}, steps);
  const share = run.num_steps ? Math.min(1, run.step / run.num_steps) : null;
  return el("div", {class: "going"},
    el("span", {}, steps, run.left === null ? "" : el("span", {class: "muted"}, ` · ${duration(run.left)} left`)),
    share === null ? null : el("div", {class: "progress", role: "progressbar", "aria-label": `Progress of ${run.name}`, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(100 * share)},
      el("i", {style: {width: `${100 * share}%`}})));
}

/** A dialog with every setting and metric of the runs, those that differ first. */
function columnPicker() {
  const search = el("input", {type: "search", placeholder: "Find a setting or metric", "aria-label": "Find a column", oninput: () => draw()});
  const list = el("div", {class: "picker-list"});
  const dialog = el("dialog", {class: "picker", "aria-label": "Columns of the table"},
    el("form", {method: "dialog"}, el("h2", {}, "Columns"), search, list,
      el("div", {class: "ends"}, button("Defaults", () => { setParams({col: null}); draw(); }),
        el("button", {class: "main", value: "done"}, "Done"))));
  const chosen = () => route.params.getAll("col").length ? route.params.getAll("col") : DEFAULT;

  function draw() {
    const words = search.value.toLowerCase();
    const runs = filtered(allRuns(), param("q")).runs;
    const {differing, metrics, same} = offered(runs);
    const now = chosen();
    const group = (title, keys) => {
      const found = keys.filter(([, name]) => name.toLowerCase().includes(words));
      return found.length ? el("fieldset", {}, el("legend", {}, title), found.slice(0, 300).map(([key, name]) =>
        toggle(name, now.includes(key), (on) => setParams({col: on ? [...chosen(), key] : chosen().filter((other) => other !== key)})))) : null;
    };
    put(list,
      group("Of every run", Object.entries(FIXED).map(([key, {title}]) => [key, title])),
      group("Settings that differ between the runs shown", differing.map((name) => [`s:${name}`, name])),
      group("Metrics (last value)", metrics.map((name) => [`m:${name}`, name])),
      group("Other settings", same.map((name) => [`s:${name}`, name])));
  }
  return {dialog, open: () => { search.value = ""; draw(); dialog.showModal(); }};
}
