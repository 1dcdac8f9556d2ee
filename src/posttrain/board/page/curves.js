// Curves of the selected runs, one chart for each metric.

import {$, button, choice, el, empty, later, put, setText, toggle} from "./dom.js";
import {metricsOf, points, progressOf, reader, wasRead, wholePoints} from "./curvedata.js";
import {number, percent} from "./format.js";
import {groupsOf, meaningOf} from "./meanings.js";
import {makeChart} from "./plot.js";
import {chosenRuns, showLegend} from "./legend.js";
import {
  address,
  assignSlots,
  colourName,
  dashOf,
  namesOf,
  param,
  setParams,
  shownRuns,
} from "./state.js";

const AXES = [
  ["step", "step"],
  ["tokens", "tokens"],
  ["time", "time"],
];
const OPEN_AT_FIRST = 30; // charts; with more, groups beside the first start closed
const TALL = 420,
  SHORT = 190;

export function show(host) {
  const charts = new Map(); // metric -> {figure, chart, latest, note}
  const visible = new Set();
  const folded = new Map(); // group -> open, as the reader left it
  let runs = [],
    layout = "",
    groups = [];

  const data = reader(
    () => {
      lay();
      draw();
    },
    (error) => setText(status, error.gone ? "" : error.message),
  );
  const watch = new IntersectionObserver(
    (entries) => {
      for (const {target, isIntersecting} of entries)
        isIntersecting ? visible.add(target.dataset.metric) : visible.delete(target.dataset.metric);
      ask();
      draw();
    },
    {rootMargin: "250px 0px"},
  );

  const names = el("input", {
    type: "search",
    id: "metric-filter",
    placeholder: "Filter by name",
    "aria-label": "Filter of charts",
    value: param("metric"),
    oninput: later(() => setParams({metric: names.value.trim()}), 120),
  });
  const axis = choice(
    "x axis",
    AXES,
    param("x", "step"),
    (value) => setParams({x: value, from: null, to: null}),
    {id: "axis"},
  );
  const log = toggle("log y", param("log") === "1", (on) => setParams({log: on ? 1 : null}), {
    id: "log",
  });
  const amount = el("output", {});
  const smoothing = el("input", {
    type: "range",
    id: "smoothing",
    min: 0,
    max: 0.98,
    step: 0.02,
    "aria-label": "Smoothing",
    oninput: () => {
      setText(amount, Number(smoothing.value).toFixed(2));
      setParams({smooth: smoothing.value});
    },
  });
  const from = rangeField("from"),
    to = rangeField("to");
  const reset = button("Reset", () => zoom(null), {
    id: "reset",
    "aria-label": "Show the whole range",
  });
  const status = el("p", {class: "small muted", role: "status"});
  const strip = el("div"),
    area = el("div", {class: "chart-area"});
  put(
    host,
    el(
      "div",
      {class: "controls sticky"},
      names,
      axis,
      el("label", {class: "field"}, el("span", {}, "Smoothing"), smoothing, amount),
      log,
      el(
        "span",
        {class: "field range", role: "group", "aria-label": "Range of the x axis"},
        "Range",
        from,
        "–",
        to,
        reset,
      ),
    ),
    strip,
    status,
    area,
  );
  update([]);

  function rangeField(name) {
    return el("input", {
      type: "number",
      step: "any",
      "aria-label": name === "from" ? "Start of the range" : "End of the range",
      onchange: () => setParams({[name]: name === "from" ? from.value : to.value}),
    });
  }

  function zoom(ends) {
    if (!ends) return setParams({from: null, to: null});
    const [low, high] =
      param("x", "step") === "step"
        ? [Math.floor(ends[0]), Math.ceil(ends[1])]
        : ends.map((end) => Number(end.toPrecision(7)));
    if (high > low) setParams({from: Math.max(0, low), to: high});
    return null;
  }

  /** The zoom in units of the axis, or null; an end that is not given is open. */
  function range() {
    const ends = [param("from"), param("to")].map((text) =>
      text === "" || Number.isNaN(Number(text)) ? null : Number(text),
    );
    if (ends[0] === null && ends[1] === null) return null;
    return [ends[0] ?? -Infinity, ends[1] ?? Infinity];
  }

  function update(reasons) {
    runs = shownRuns((run) => Object.keys(run.metrics).length > 0 || run.step > 0);
    assignSlots(runs);
    smoothing.value = param("smooth", "0.6");
    $("select", axis).value = param("x", "step");
    $("input", log).checked = param("log") === "1";
    if (document.activeElement !== names) names.value = param("metric");
    setText(amount, Number(smoothing.value).toFixed(2));
    for (const [field, name] of [
      [from, "from"],
      [to, "to"],
    ])
      if (document.activeElement !== field) field.value = param(name);
    reset.disabled = range() === null;
    showLegend(strip, runs, {hides: true});
    lay();
    ask();
    if (reasons.length) draw();
  }

  /** Make the charts of the metrics that there are, and keep those that stay. */
  function lay() {
    const words = names.value.trim().toLowerCase();
    const metrics = [...new Set(runs.flatMap(metricsOf))].filter((name) =>
      name.toLowerCase().includes(words),
    );
    groups = groupsOf(metrics);
    const next = JSON.stringify([groups, words !== ""]);
    if (next === layout) return;
    layout = next;
    for (const [metric, {figure, chart}] of charts) {
      if (metrics.includes(metric)) continue;
      watch.unobserve(figure);
      chart.close();
      charts.delete(metric);
      visible.delete(metric);
    }
    const all = metrics.length <= OPEN_AT_FIRST || words !== "";
    put(
      area,
      groups.map(([title, list]) => {
        const grid = el(
          "div",
          {class: "charts"},
          list.map((metric) => (charts.get(metric) ?? make(metric)).figure),
        );
        if (title === "") return grid;
        const open =
          words !== "" || (folded.get(title) ?? (all && title !== "evaluation by label"));
        return el(
          "details",
          {
            class: "group",
            open,
            ontoggle: (event) => words === "" && folded.set(title, event.target.open),
          },
          el("summary", {}, title, el("span", {class: "muted"}, ` ${list.length}`)),
          grid,
        );
      }),
    );
    if (!metrics.length) put(area, nothing(words));
  }

  function nothing(words) {
    if (words && runs.length) return empty("No metric has this in its name");
    if (!runs.length)
      return empty(
        "No curves yet",
        el(
          "span",
          {},
          "They appear with the first step of a run. ",
          el("a", {href: address("runs")}, "To the runs"),
        ),
      );
    return runs.every(({id}) => wasRead(id))
      ? empty("These runs have no metrics", "They appear with the first step.")
      : el("p", {class: "muted"}, "Reading…");
  }

  function make(metric) {
    const plot = el("div"),
      latest = el("div", {class: "latest", title: "last value"}),
      note = el("p", {class: "note", hidden: true});
    const enlarge = button(
      "Enlarge",
      () => {
        const big = figure.classList.toggle("big");
        setText(enlarge, big ? "Reduce" : "Enlarge");
        enlarge.setAttribute("aria-pressed", String(big));
        chart.resize(big ? TALL : SHORT);
      },
      {class: "link", "aria-pressed": "false", "aria-label": `Enlarge ${metric}`},
    );
    const figure = el(
      "figure",
      {class: "card", "data-metric": metric},
      el(
        "figcaption",
        {},
        el("div", {class: "headline"}, el("h3", {}, metric || "(no name)"), latest, enlarge),
        meaningOf(metric) ? el("p", {class: "meaning"}, meaningOf(metric)) : null,
      ),
      plot,
      note,
    );
    const chart = makeChart(plot, {height: SHORT, onzoom: zoom});
    charts.set(metric, {figure, chart, latest, note});
    watch.observe(figure);
    return charts.get(metric);
  }

  function ask() {
    // Before any chart is in sight the names of the metrics are all that is needed.
    data.want({
      ids: runs.map(({id}) => id),
      metrics: [...visible].filter((metric) => charts.has(metric)),
      range: stepRange(),
    });
  }

  /** The range in steps, as the server wants it: those of all runs that are inside. */
  function stepRange() {
    const ends = range();
    if (!ends) return null;
    const x = param("x", "step");
    if (x === "step")
      return [
        Number.isFinite(ends[0]) ? Math.floor(ends[0]) : 0,
        Number.isFinite(ends[1]) ? Math.ceil(ends[1]) : 2 ** 31,
      ];
    let low = Infinity,
      high = -Infinity;
    for (const {id} of runs) {
      for (const metric of visible) {
        const have = wholePoints(id, metric);
        const places = have && placesOf(have, x);
        places?.forEach((place, i) => {
          if (place < ends[0] || place > ends[1]) return;
          low = Math.min(low, have.steps[Math.max(0, i - 1)]);
          high = Math.max(high, have.steps[Math.min(places.length - 1, i + 1)]);
        });
      }
    }
    return low <= high ? [low, high] : null;
  }

  function draw() {
    const hidden = new Set(hiddenRuns());
    const drawn = runs.filter(({id}) => !hidden.has(id));
    const short = namesOf(runs);
    const wanted = {
      log: param("log") === "1",
      smoothing: Number(smoothing.value),
      axis: param("x", "step"),
    };
    const reading = runs.filter(({id}) => progressOf(id) < 1);
    setText(
      status,
      reading.length
        ? `Reading ${reading.map((run) => `${short.get(run.id)} (${percent(progressOf(run.id), 0)})`).join(", ")}: what is shown is a preview.`
        : "",
    );
    status.hidden = status.textContent === "";
    for (const metric of visible) if (charts.has(metric)) drawChart(metric, drawn, short, wanted);
  }

  function drawChart(metric, drawn, short, {log, smoothing, axis}) {
    const {chart, latest, note} = charts.get(metric);
    const notes = [];
    let waiting = false;
    const curves = drawn.flatMap((run) => {
      const have = points(run.id, metric);
      if (!have) {
        waiting ||= !wasRead(run.id);
        return [];
      }
      const xs = placesOf(have, axis);
      if (!xs) {
        notes.push(`${short.get(run.id)} has no count of ${axis}`);
        return [];
      }
      return have.steps.length
        ? [
            {
              id: run.id,
              name: short.get(run.id),
              colour: colourName(run.id),
              dash: dashOf(run.id),
              xs,
              ys: have.mean,
              low: have.low,
              high: have.high,
              steps: have.steps,
            },
          ]
        : [];
    });
    const positive = curves.some(({ys}) => ys.some((value) => value > 0));
    if (log && curves.length) {
      if (!positive) notes.push("shown linear: no value is positive");
      else if (curves.some(({ys}) => ys.some((value) => value <= 0)))
        notes.push("the log scale leaves out values that are not positive");
    }
    const ends = range();
    chart.draw({
      curves,
      log: log && positive,
      smoothing,
      axis,
      label: metric,
      range: ends && openEnds(ends, curves),
      note: waiting ? "Reading…" : ends ? "Nothing in this range" : "Nothing to draw",
    });
    put(latest, drawn.length === 1 && curves.length ? number(curves[0].ys.at(-1)) : []);
    setText(note, notes.slice(0, 3).join("; "));
    note.hidden = !notes.length;
  }

  return {
    update,
    close() {
      data.close();
      watch.disconnect();
      for (const {chart} of charts.values()) chart.close();
    },
  };
}

/** Replace an open end of a range by the end of the curves. */
function openEnds([low, high], curves) {
  const first = Math.min(...curves.map(({xs}) => xs[0])),
    last = Math.max(...curves.map(({xs}) => xs.at(-1)));
  return [
    Number.isFinite(low) ? low : Math.min(first, high),
    Number.isFinite(high) ? high : Math.max(last, low),
  ];
}

const placesOf = (have, axis) =>
  axis === "tokens" ? have.tokens : axis === "time" ? have.seconds : have.steps;
const hiddenRuns = () => chosenRuns("hide");
