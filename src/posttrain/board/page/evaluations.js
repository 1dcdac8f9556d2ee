// Results of evaluations by task, with intervals and paired tests against a baseline.

import {get} from "./api.js";
import {el, empty, later, put, scrolling} from "./dom.js";
import {count, isNumber, pValue, signed, whole} from "./format.js";
import {accuracy, comparable, differences, figures} from "./results.js";
import {param, selected, setParams} from "./state.js";

const AGAIN = 10_000; // milliseconds between two readings of the results
const AT_ONCE = 4; // paired tests that are asked for at the same time
const SMALL = 0.05;

export function show(host) {
  let results = null,
    readAt = 0,
    closed = false,
    turn = 0;
  const compared = new Map(); // baseline, result and state of both -> {rows, left_out} or {problem}
  const search = el("input", {
    type: "search",
    placeholder: "Filter results and tasks",
    "aria-label": "Filter of results and tasks",
    value: param("q"),
    oninput: later(() => setParams({q: search.value.trim()}), 100),
  });
  const baseline = el("select", {
    id: "baseline",
    "aria-label": "Baseline",
    onchange: () => setParams({base: baseline.value}),
  });
  const note = el("p", {class: "small muted", role: "status"});
  const area = el("div", {class: "stack-area"});
  put(
    host,
    el(
      "div",
      {class: "controls"},
      search,
      el("label", {class: "field grow"}, "Baseline", baseline),
      note,
    ),
    area,
  );
  read();

  async function read() {
    readAt = Date.now();
    try {
      const answer = await get("/api/evaluations");
      if (closed) return;
      if (JSON.stringify(answer.results) === JSON.stringify(results)) return;
      results = answer.results;
      draw();
    } catch (error) {
      if (!closed && !error.gone) put(area, empty("The results cannot be read", error.message));
    }
  }

  /** The results that are shown, and their tasks: the filter finds either. */
  function chosen() {
    const words = param("q").toLowerCase();
    const marked = new Set(selected());
    const own = results.filter(({run}) => run && marked.has(run));
    const list =
      marked.size && own.length && param("all") !== "1"
        ? [
            ...own,
            ...results.filter(
              ({id}) => id === param("base") && !own.some((other) => other.id === id),
            ),
          ]
        : results;
    const tasks = [...new Set(list.flatMap((result) => Object.keys(result.tasks)))];
    const fits = tasks.filter((task) => task.toLowerCase().includes(words));
    const byTask = words !== "" && fits.length > 0;
    return {
      shown: byTask
        ? list.filter((result) => fits.some((task) => Object.hasOwn(result.tasks, task)))
        : list.filter(({name}) => name.toLowerCase().includes(words)),
      tasks: byTask ? fits : tasks,
      narrowed: list.length < results.length,
    };
  }

  function draw() {
    if (!results) return;
    if (!results.length) {
      baseline.disabled = true;
      put(
        area,
        empty(
          "No evaluations",
          el(
            "span",
            {},
            "Results of ",
            el("code", {}, "posttrain eval … --output FOLDER"),
            " appear here if the folder is below this one.",
          ),
        ),
      );
      return;
    }
    baseline.disabled = false;
    put(
      baseline,
      el("option", {value: ""}, "none"),
      results.map(({id, name}) => el("option", {value: id}, name)),
    );
    baseline.value = results.some(({id}) => id === param("base")) ? param("base") : "";
    const {shown, tasks, narrowed} = chosen();
    put(
      note,
      count(shown.length, "result"),
      narrowed
        ? [
            " of the selected runs: ",
            el(
              "button",
              {type: "button", class: "link", onclick: () => setParams({all: 1})},
              "show all",
            ),
          ]
        : null,
    );
    if (!shown.length) {
      put(area, empty("No result and no task has this in its name"));
      return;
    }
    const base = results.find(({id}) => id === baseline.value) ?? null;
    const ordered = inOrder(shown, base);
    put(
      area,
      table(ordered, tasks, base),
      base
        ? el(
            "p",
            {class: "small muted"},
            "Differences are in percentage points over the problems that both results have; p is that of the paired test, two-sided and not corrected for looking at several. ",
            `Below ${SMALL} it is bold.`,
          )
        : null,
      notesOf(ordered, base),
      differences(ordered, tasks),
      figures(ordered, tasks),
    );
    if (base) test(ordered, base);
  }

  function inOrder(shown, base) {
    const task = param("sort").replace(/^-/, "");
    const sign = param("sort").startsWith("-") ? -1 : 1;
    const list =
      task === ""
        ? [...shown]
        : [...shown].sort((a, b) => {
            const [x, y] = [a.tasks[task]?.accuracy, b.tasks[task]?.accuracy];
            return !isNumber(x) || !isNumber(y) ? isNumber(y) - isNumber(x) : sign * (x - y);
          });
    return base ? [base, ...list.filter(({id}) => id !== base.id)] : list;
  }

  function sortButton(task) {
    const here = param("sort").replace(/^-/, "") === task;
    const next = here && param("sort").startsWith("-") ? task : `-${task}`;
    return el(
      "th",
      {
        scope: "col",
        "aria-sort": here ? (param("sort").startsWith("-") ? "descending" : "ascending") : null,
      },
      el(
        "button",
        {type: "button", class: "sort", onclick: () => setParams({sort: next})},
        task,
        el(
          "span",
          {class: "arrow", "aria-hidden": "true"},
          here ? (param("sort").startsWith("-") ? "↓" : "↑") : "",
        ),
      ),
    );
  }

  function table(shown, tasks, base) {
    return scrolling(
      "Results by task",
      el(
        "table",
        {class: "results"},
        el("thead", {}, el("tr", {}, el("th", {scope: "col"}, "result"), tasks.map(sortButton))),
        el(
          "tbody",
          {},
          shown.map((result) =>
            el(
              "tr",
              {class: result === base ? "marked" : null, "data-result": result.id},
              el(
                "th",
                {scope: "row"},
                result.run
                  ? el(
                      "a",
                      {
                        href: `#/curves?${new URLSearchParams([["run", result.run]])}`,
                        title: `run ${result.run}`,
                      },
                      result.name,
                    )
                  : result.name,
                result === base ? el("span", {class: "muted small"}, " baseline") : null,
              ),
              tasks.map((task) =>
                el(
                  "td",
                  {"data-label": task},
                  Object.hasOwn(result.tasks, task)
                    ? accuracy(result.tasks[task])
                    : el("span", {class: "muted"}, "–"),
                  base && base !== result && Object.hasOwn(result.tasks, task)
                    ? difference(result, base, task)
                    : null,
                ),
              ),
            ),
          ),
        ),
      ),
    );
  }

  const nameOf = (base, result) =>
    `${base.id}\n${result.id}\n${JSON.stringify([base.tasks, result.tasks]).length}`;

  function difference(result, base, task) {
    const pair = compared.get(nameOf(base, result)) ?? (comparable(base, result) ? null : {});
    if (!pair) return el("div", {class: "small muted"}, "…");
    const row = pair.rows?.find((row) => row.task === task);
    if (!row)
      return el("div", {class: "small muted", title: pair.problem ?? null}, "no paired test");
    const points = 100 * (row.accuracy_b - row.accuracy_a);
    return el(
      "div",
      {
        class: "difference small",
        title: `${row.test} over ${whole(row.num_problems)} problems; only the baseline solves ${row.only_a}, only this one ${row.only_b}`,
      },
      el(
        "span",
        {class: points > 0 ? "better" : points < 0 ? "worse" : ""},
        signed(points, (size) => size.toFixed(1)),
      ),
      " p ",
      row.p_value < SMALL ? el("b", {}, pValue(row.p_value)) : pValue(row.p_value),
      row.notes.length ? el("span", {class: "muted"}, " *") : null,
    );
  }

  /** Ask for the paired tests that are not known yet, a few at a time, and draw as they come. */
  async function test(shown, base) {
    const number = ++turn;
    const missing = shown.filter(
      (result) =>
        result !== base && !compared.has(nameOf(base, result)) && comparable(base, result),
    );
    const work = async () => {
      for (let result; !closed && number === turn && (result = missing.shift());) {
        try {
          compared.set(
            nameOf(base, result),
            await get("/api/compare", [
              ["a", base.id],
              ["b", result.id],
            ]),
          );
        } catch (error) {
          if (error.gone) return;
          compared.set(nameOf(base, result), {problem: error.message});
        }
      }
    };
    if (!missing.length) return;
    await Promise.all(Array.from({length: AT_ONCE}, work));
    if (!closed && number === turn) draw();
  }

  /** What the paired tests have to say of settings and problems that are not the same. */
  function notesOf(shown, base) {
    if (!base) return null;
    const rows = shown.flatMap((result) => {
      const {rows = [], problem} = compared.get(nameOf(base, result)) ?? {};
      const item = (text) => el("li", {}, el("b", {}, result.name), text);
      return [
        ...(problem ? [item(`: ${problem}`)] : []),
        ...rows
          .filter(({notes}) => notes.length)
          .map(({task, notes}) => item(`, ${task}: ${notes.join("; ")}`)),
      ];
    });
    return rows.length
      ? el(
          "details",
          {class: "small notes", open: rows.length <= 6},
          el(
            "summary",
            {},
            `* ${count(rows.length, "comparison")} with a note (A is the baseline)`,
          ),
          el("ul", {}, rows),
        )
      : null;
  }

  return {
    update(reasons) {
      if (document.activeElement !== search) search.value = param("q");
      // The server looks through all folders for it, and evaluations end rarely.
      if (reasons.includes("runs") && Date.now() - readAt > AGAIN) read();
      if (reasons.some((name) => name !== "runs")) draw();
    },
    close() {
      closed = true;
    },
  };
}
