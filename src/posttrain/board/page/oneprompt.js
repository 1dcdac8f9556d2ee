// One prompt: its completions over the steps, those of the selected runs side by side.

import {get} from "./api.js";
import {button, clipped, el, empty, inPortions, put, setText} from "./dom.js";
import {count, isNumber, plain} from "./format.js";
import {runLabel} from "./legend.js";
import {makeChart} from "./plot.js";
import {completion} from "./sample.js";
import {assignSlots, colourName, dashOf, namesOf, param, setParams} from "./state.js";
import {rewardScale} from "./steps.js";

export function show(host, first) {
  let context = first,
    read = null,
    turn = 0,
    closed = false;
  const back = button("‹ All prompts", () => setParams({prompt: null, by: "prompts"}), {
    class: "link",
  });
  const note = el("p", {class: "small muted", role: "status"});
  const head = el("div", {class: "card prompt-card"});
  const plot = el("div"),
    figure = el("figure", {class: "card"}, el("h3", {}, "Mean reward over steps"), plot);
  const chart = makeChart(plot, {height: 150});
  const grid = el("div", {class: "side-by-side"});
  put(host, back, head, figure, note, grid);
  load();

  async function load() {
    const ids = context.runs.map(({id}) => id);
    const wanted = JSON.stringify([param("prompt"), context.runs.map(({id, step}) => [id, step])]);
    if (wanted === read) return;
    read = wanted;
    const number = ++turn;
    try {
      const answer = await get("/api/samples/prompt", [
        ["prompt_key", param("prompt")],
        ...ids.map((id) => ["run", id]),
      ]);
      if (!closed && number === turn) draw(answer);
    } catch (error) {
      read = null;
      if (!closed && !error.gone) put(grid, empty("The completions cannot be read", error.message));
    }
  }

  function draw({samples, left_out: leftOut}) {
    const runs = context.runs.filter(({id}) => samples.some((sample) => sample.run === id));
    assignSlots(context.runs);
    const names = namesOf(context.runs);
    figure.hidden = !samples.length;
    if (!samples.length) {
      put(head);
      setText(note, "");
      put(grid, empty("These runs have no completion of this prompt"));
      return;
    }
    put(
      head,
      el(
        "div",
        {class: "prompt-head"},
        clipped(plain(samples[0].prompt), "prompt", 8),
        plain(samples[0].answer) !== ""
          ? el(
              "p",
              {class: "small"},
              el("span", {class: "muted"}, "answer "),
              el("b", {dir: "auto"}, plain(samples[0].answer)),
            )
          : null,
      ),
    );
    chart.draw({
      curves: runs.map((run) => curve(run, names, samples)).filter(({xs}) => xs.length),
      log: false,
      smoothing: 0,
      range: null,
      axis: "step",
      label: "mean reward of this prompt",
      note: "No rewards",
    });
    setText(
      note,
      `${count(samples.length, "completion")} in ${count(runs.length, "run")}${leftOut ? `; ${leftOut} more are left out` : ""}${runs.length < context.runs.length ? `; ${context.runs.length - runs.length} selected ${context.runs.length - runs.length === 1 ? "run has" : "runs have"} none` : ""}${context.runs.length === 1 ? ". Selected runs are shown side by side." : ""}`,
    );
    const scale = rewardScale(samples);
    const rows = new Map(); // kind and step -> run -> samples
    for (const sample of samples) {
      const key = `${String(sample.step).padStart(12, "0")} ${sample.kind}`;
      if (!rows.has(key)) rows.set(key, {step: sample.step, kind: sample.kind, byRun: new Map()});
      const {byRun} = rows.get(key);
      byRun.set(sample.run, [...(byRun.get(sample.run) ?? []), sample]);
    }
    const kinds = new Set(samples.map(({kind}) => kind));
    const ordered = [...rows.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, row]) => row);
    grid.style.setProperty("--columns", runs.length);
    grid.classList.toggle("several", runs.length > 1);
    const heads = el(
      "div",
      {class: "side-row heads"},
      runs.map((run) => el("div", {}, runLabel(run, names.get(run.id)))),
    );
    const body = el("div");
    put(grid, runs.length > 1 ? heads : null, body);
    inPortions(
      body,
      ordered,
      ({step, kind, byRun}) =>
        el(
          "section",
          {},
          el(
            "h3",
            {class: "step-head"},
            `step ${step}`,
            kinds.size > 1 ? el("span", {class: "muted"}, ` ${kind}`) : null,
          ),
          el(
            "div",
            {class: "side-row"},
            runs.map((run) =>
              cell(run, byRun.get(run.id) ?? [], scale, runs.length > 1 ? names.get(run.id) : null),
            ),
          ),
        ),
      12,
    );
  }

  function cell(run, samples, scale, name) {
    return el(
      "div",
      {class: "card side-cell"},
      name ? el("p", {class: "small phone-only"}, runLabel(run, name)) : null,
      samples.length
        ? samples.map((sample) => completion(sample, run.id, scale))
        : el("p", {class: "muted small"}, "not sampled at this step"),
    );
  }

  return {
    update(next) {
      context = next;
      load();
    },
    close() {
      closed = true;
      chart.close();
    },
  };
}

function curve(run, names, samples) {
  const steps = new Map();
  for (const {run: id, step, reward} of samples) {
    if (id !== run.id || !isNumber(reward)) continue;
    steps.set(step, [...(steps.get(step) ?? []), reward]);
  }
  const xs = [...steps.keys()].sort((a, b) => a - b);
  return {
    id: run.id,
    name: names.get(run.id),
    colour: colourName(run.id),
    dash: dashOf(run.id),
    xs,
    low: null,
    high: null,
    ys: xs.map((step) => steps.get(step).reduce((a, b) => a + b, 0) / steps.get(step).length),
  };
}
