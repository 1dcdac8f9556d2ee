// Confusion matrices and the scores of each label, of several runs side by side.

import {get} from "./api.js";
import {$, choice, el, empty, put, scrolling} from "./dom.js";
import {isNumber, number, percent} from "./format.js";
import {showLegend, runLabel} from "./legend.js";
import {
  allRuns,
  assignSlots,
  namesOf,
  newestFirst,
  param,
  selected,
  setParams,
  shownRuns,
} from "./state.js";

const SHARES = [
  ["rows", "of each true label"],
  ["all", "of all rows"],
  ["columns", "of each prediction"],
];
const CAPTIONS = {
  rows: "Each row: of the rows with this true label, the share with each predicted label, in percent.",
  all: "Share of all rows with each pair of a true and a predicted label, in percent.",
  columns:
    "Each column: of the rows with this predicted label, the share with each true label, in percent.",
};

const having = (run) => run.has.classification;

export function show(host) {
  const found = new Map(); // run ID and step -> answer, or the Error of a refusal
  let turn = 0,
    closed = false,
    key = "";
  const shares = choice(
    "Shares",
    SHARES,
    param("shares", "rows"),
    (value) => setParams({shares: value}),
    {id: "shares"},
  );
  const slider = el("input", {
    type: "range",
    id: "class-step",
    class: "long",
    min: 0,
    step: 1,
    "aria-label": "Evaluated step",
    oninput: () => {
      setParams({step: Number(slider.value) === steps().length - 1 ? null : steps()[slider.value]});
    },
  });
  const output = el("output", {});
  const stepper = el("label", {class: "field stepper"}, "Step", slider, output);
  const strip = el("div"),
    area = el("div", {class: "matrices"});
  put(host, el("div", {class: "controls"}, stepper, shares), strip, area);
  update();

  /** The selected runs that classify; if none of them does, the newest ones that do. */
  function chosen() {
    const runs = shownRuns(having).filter(having);
    return runs.length || !selected().length
      ? runs
      : newestFirst(allRuns().filter(having)).slice(0, 3);
  }

  /** Steps at which any of the runs was evaluated. */
  function steps() {
    const all = new Set(chosen().flatMap((run) => found.get(`${run.id} last`)?.steps ?? []));
    return [...all].sort((a, b) => a - b);
  }

  /** The step to show of a run: the last one up to the wanted step, else its first. */
  function stepOf(run) {
    const own = found.get(`${run.id} last`)?.steps ?? [];
    const wanted = param("step");
    if (wanted === "" || !own.length) return "last";
    return own.findLast((step) => step <= Number(wanted)) ?? own[0];
  }

  async function read(run, step, mark) {
    const name = `${run.id} ${step}`;
    if (found.get(name)?.mark === mark) return;
    try {
      const answer = await get("/api/classification", [
        ["run", run.id],
        ["step", step === "last" ? null : step],
      ]);
      found.set(name, {...answer, mark});
    } catch (error) {
      if (!error.gone) found.set(name, {problem: error.message, mark});
    }
  }

  async function update() {
    $("select", shares).value = param("shares", "rows");
    const runs = chosen();
    assignSlots(runs);
    showLegend(strip, runs);
    if (!runs.length) {
      stepper.hidden = true;
      put(
        area,
        empty(
          "No classification",
          selected().length
            ? "None of the runs classifies."
            : "Runs of the method classification show their confusion matrix here.",
        ),
      );
      return;
    }
    const number = ++turn;
    await Promise.all(runs.map((run) => read(run, "last", `${run.updated} ${run.step}`)));
    await Promise.all(
      runs.map((run) =>
        stepOf(run) === "last" ? null : read(run, stepOf(run), `${run.updated} ${run.step}`),
      ),
    );
    if (closed || number !== turn) return;
    const all = steps();
    stepper.hidden = all.length < 2;
    slider.max = all.length - 1;
    const place =
      param("step") === ""
        ? all.length - 1
        : all.findLastIndex((step) => step <= Number(param("step")));
    slider.value = Math.max(0, place);
    output.textContent = all.length ? `${all[Math.max(0, place)]} of ${all.at(-1)}` : "";
    const next = JSON.stringify([
      param("shares"),
      runs.map((run) => [run.id, found.get(`${run.id} ${stepOf(run)}`)]),
    ]);
    if (next === key) return;
    key = next;
    const names = namesOf(runs);
    put(
      area,
      runs.map((run) =>
        section(
          run,
          names.get(run.id),
          found.get(`${run.id} ${stepOf(run)}`),
          param("shares", "rows"),
        ),
      ),
    );
  }

  return {
    update,
    close() {
      closed = true;
    },
  };
}

function section(run, name, answer, shares) {
  const head = el(
    "h2",
    {},
    runLabel(run, name),
    answer?.step === undefined ? null : el("span", {class: "muted small"}, ` step ${answer.step}`),
  );
  if (!answer || answer.problem) {
    return el(
      "section",
      {},
      head,
      el("p", {class: "muted small"}, answer ? answer.problem : "Not read yet"),
    );
  }
  return el(
    "section",
    {"data-run": run.id},
    head,
    answer.cells
      ? matrix(answer, shares, name)
      : el(
          "p",
          {class: "muted small"},
          "No confusion matrix: with several labels for each row there is none, or it has not been recorded.",
        ),
    scores(answer, name),
  );
}

function matrix({labels, cells}, shares, name) {
  const rows = cells.map((row) => row.reduce((a, b) => a + b, 0));
  const columns = labels.map((_, j) => cells.reduce((sum, row) => sum + row[j], 0));
  const all = rows.reduce((a, b) => a + b, 0);
  const of = (i, j) => {
    const whole = {rows: rows[i], columns: columns[j], all}[shares];
    return whole > 0 ? cells[i][j] / whole : null;
  };
  // A colour shows the share of what is compared; of all rows, the largest cell is the strongest.
  const strongest = shares === "all" ? Math.max(...cells.flat()) / all || 1 : 1;
  return scrolling(
    `Confusion matrix of ${name}`,
    el(
      "table",
      {class: "confusion"},
      el("caption", {}, CAPTIONS[shares]),
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          el("td", {class: "muted small"}, "true ↓  predicted →"),
          labels.map((label) =>
            el("th", {scope: "col"}, el("span", {class: "label"}, label || "(empty)")),
          ),
          el("th", {scope: "col", class: "right"}, "share of rows"),
        ),
      ),
      el(
        "tbody",
        {},
        labels.map((label, i) =>
          el(
            "tr",
            {},
            el("th", {scope: "row"}, el("span", {class: "label"}, label || "(empty)")),
            labels.map((_, j) => {
              const share = of(i, j);
              return el(
                "td",
                {
                  class: i === j ? "right-label" : "",
                  style: {"--share": `${share === null ? 0 : (62 * share) / strongest}%`},
                  title: `true ${label}, predicted ${labels[j]}: ${percent(cells[i][j], 2)} of all rows`,
                },
                share === null ? "–" : (100 * share).toFixed(1),
              );
            }),
            el("td", {class: "right muted"}, percent(all > 0 ? rows[i] / all : null)),
          ),
        ),
      ),
    ),
  );
}

function scores({labels, scores}, name) {
  const mean = [0, 1, 2].map((k) => {
    const known = scores.map((row) => row[k]).filter(isNumber);
    return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
  });
  const cells = (row) =>
    row.map((value) => el("td", {class: "right"}, value === null ? "–" : number(value, 3)));
  return scrolling(
    `Scores of ${name}`,
    el(
      "table",
      {},
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          el("th", {scope: "col"}, "label"),
          ["precision", "recall", "F1"].map((title) =>
            el("th", {scope: "col", class: "right"}, title),
          ),
        ),
      ),
      el(
        "tbody",
        {},
        labels.map((label, i) =>
          el("tr", {}, el("th", {scope: "row"}, label || "(empty)"), cells(scores[i])),
        ),
        el("tr", {class: "total"}, el("th", {scope: "row"}, "mean of the labels"), cells(mean)),
      ),
    ),
  );
}
