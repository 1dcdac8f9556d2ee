// The settings that differ between the selected runs, and what else is known of each run.

import {$, el, empty, later, put, scrolling, setText, toggle} from "./dom.js";
import {differs, offered} from "./columns.js";
import {bytes, count, date, duration, number} from "./format.js";
import {showLegend, runLabel} from "./legend.js";
import {stateOf} from "./runcells.js";
import {address, assignSlots, namesOf, param, setParams, shownRuns} from "./state.js";

const FACTS = [
  ["state", stateOf],
  ["method", (run) => run.method],
  ["model", (run) => run.model],
  ["step", (run) => (run.num_steps ? `${run.step} of ${run.num_steps}` : String(run.step))],
  ["duration", (run) => duration(run.seconds)],
  ["started", (run) => date(run.started)],
  ["size", (run) => bytes(run.bytes)],
  ["error", (run) => run.error ?? "–"],
];

export function show(host) {
  const search = el("input", {
    type: "search",
    placeholder: "Filter by name",
    "aria-label": "Filter of settings and metrics",
    value: param("name"),
    oninput: later(() => setParams({name: search.value.trim()}), 80),
  });
  const all = toggle(
    "all settings",
    param("all") === "1",
    (on) => setParams({all: on ? 1 : null}),
    {id: "all-settings"},
  );
  const note = el("p", {class: "small muted", role: "status"});
  const strip = el("div"),
    area = el("div", {class: "stack-area"});
  put(host, el("div", {class: "controls"}, search, all, note), strip, area);
  let drawn = null;
  update();

  function update() {
    if (document.activeElement !== search) search.value = param("name");
    $("input", all).checked = param("all") === "1";
    const runs = shownRuns();
    assignSlots(runs);
    const key = [param("name"), param("all"), ...runs];
    // A table that is made again loses its place; nothing here changes unless one of the runs did.
    if (drawn && drawn.length === key.length && drawn.every((item, i) => item === key[i])) return;
    drawn = key;
    showLegend(strip, runs);
    const words = param("name").toLowerCase();
    const fits = (name) => name.toLowerCase().includes(words);
    const {differing, same, metrics} = offered(runs);
    const one = runs.length === 1;
    const whole = one || param("all") === "1";
    // Runs of different methods have whole sections that the others lack: these come last.
    const lacking = (name) => runs.some((run) => !Object.hasOwn(run.settings, name));
    const shown = [...differing, ...(whole ? same : [])]
      .filter(fits)
      .sort((a, b) => lacking(a) - lacking(b) || (a < b ? -1 : 1));
    setText(
      note,
      runs.length < 2
        ? ""
        : `${count(differing.length, "setting")} of ${differing.length + same.length} ${differing.length === 1 ? "differs" : "differ"}`,
    );
    if (!runs.length) {
      put(area, empty("No runs to compare", el("a", {href: address("runs")}, "To the runs")));
      return;
    }
    const names = namesOf(runs);
    put(
      area,
      table(
        "Settings",
        runs,
        names,
        shown.map((name) => [
          name,
          runs.map((run) => (Object.hasOwn(run.settings, name) ? run.settings[name] : null)),
          !one && differs(runs, name),
        ]),
        whole
          ? "No setting has this in its name"
          : words
            ? "No setting that differs has this in its name"
            : "The settings of these runs are the same",
      ),
      table(
        "Last value of each metric",
        runs,
        names,
        metrics
          .filter(fits)
          .map((name) => [
            name,
            runs.map((run) =>
              Object.hasOwn(run.metrics, name) ? number(run.metrics[name], 5) : null,
            ),
          ]),
        "No metrics",
      ),
      table(
        "Facts",
        runs,
        names,
        FACTS.filter(([name]) => fits(name)).map(([name, of]) => [name, runs.map(of)]),
        "Nothing",
      ),
    );
  }
  return {update};
}

function table(title, runs, names, rows, otherwise) {
  return el(
    "section",
    {},
    el("h2", {}, title),
    rows.length
      ? scrolling(
          title,
          el(
            "table",
            {class: "compare"},
            el(
              "thead",
              {},
              el(
                "tr",
                {},
                el("td", {}),
                runs.map((run) => el("th", {scope: "col"}, runLabel(run, names.get(run.id)))),
              ),
            ),
            el(
              "tbody",
              {},
              rows.map(([name, cells, different]) =>
                el(
                  "tr",
                  {class: different ? "differs" : null},
                  el("th", {scope: "row"}, name),
                  cells.map((cell) =>
                    el(
                      "td",
                      {dir: typeof cell === "string" ? "auto" : null},
                      cell === null || cell === undefined
                        ? el("span", {class: "muted"}, "–")
                        : el("div", {}, cell),
                    ),
                  ),
                ),
              ),
            ),
          ),
        )
      : el("p", {class: "muted small"}, otherwise),
  );
}
