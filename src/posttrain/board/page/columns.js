// The columns of the table of runs: fixed ones, and any setting or metric of the runs.

import {ago, bytes, duration, isNumber, number, shortModel} from "./format.js";

export const FIXED = {
  state: {title: "state", value: (run) => run.state},
  progress: {
    title: "progress",
    value: (run) => (run.num_steps ? run.step / run.num_steps : run.step),
    down: true,
  },
  method: {title: "method", value: (run) => run.method},
  model: {
    title: "model",
    value: (run) => shortModel(run.model),
    text: (run) => shortModel(run.model),
    hint: (run) => run.model,
  },
  metric: {title: "metric", value: (run) => run.value, down: true},
  duration: {
    title: "duration",
    value: (run) => run.seconds,
    text: (run) => duration(run.seconds),
    down: true,
    number: true,
  },
  started: {
    title: "started",
    value: (run) => run.started,
    text: (run) => ago(run.started),
    down: true,
    number: true,
  },
  updated: {
    title: "last metrics",
    value: (run) => run.updated,
    text: (run) => ago(run.updated),
    down: true,
    number: true,
  },
  bytes: {
    title: "size",
    value: (run) => run.bytes,
    text: (run) => bytes(run.bytes),
    down: true,
    number: true,
  },
};
export const DEFAULT = ["state", "progress", "method", "model", "metric", "updated", "bytes"];

/** A column by its key: a fixed one, "s:" and a setting, or "m:" and a metric; null if unknown. */
export function column(key) {
  if (Object.hasOwn(FIXED, key)) return {key, ...FIXED[key]};
  if (key === "name") return {key, title: "run", value: (run) => run.id};
  const name = key.slice(2);
  if (key.startsWith("s:")) {
    const of = (run) => (Object.hasOwn(run.settings, name) ? run.settings[name] : null);
    return {
      key,
      title: name,
      number: true,
      value: (run) => sortable(of(run)),
      text: (run) => of(run) ?? "–",
      hint: of,
    };
  }
  if (key.startsWith("m:")) {
    const of = (run) => (Object.hasOwn(run.metrics, name) ? run.metrics[name] : null);
    return {key, title: name, number: true, down: true, value: of, text: (run) => number(of(run))};
  }
  return null;
}

/** Settings are text; those that are numbers sort as numbers. */
function sortable(text) {
  if (text === null || text.trim() === "") return text;
  const value = Number(text);
  return isNumber(value) ? value : text;
}

/** Sort by a column; runs without a value come last in either direction. */
export function sorted(runs, {value}, descending) {
  const sign = descending ? -1 : 1;
  const keyed = runs.map((run) => [value(run), run]);
  keyed.sort(([a, x], [b, y]) => {
    if (a === null || a === undefined) return b === null || b === undefined ? tie(x, y) : 1;
    if (b === null || b === undefined) return -1;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    const order = typeof a === "number" ? a - b : a.localeCompare(b, "en", {numeric: true});
    return sign * order || tie(x, y);
  });
  return keyed.map(([, run]) => run);
}
const tie = (x, y) => y.updated - x.updated || (x.id < y.id ? -1 : 1);

/** All settings and metrics of the runs, each list in order of names; differing settings apart. */
export function offered(runs) {
  const settings = new Map(),
    metrics = new Set();
  for (const run of runs) {
    for (const key of Object.keys(run.settings)) settings.set(key, null);
    for (const key of Object.keys(run.metrics)) metrics.add(key);
  }
  const names = [...settings.keys()].sort();
  const differing = new Set(runs.length > 1 ? names.filter((name) => differs(runs, name)) : []);
  return {
    differing: names.filter((name) => differing.has(name)),
    metrics: [...metrics].sort(),
    same: names.filter((name) => !differing.has(name)),
  };
}

export function differs(runs, name) {
  const of = (run) => (Object.hasOwn(run.settings, name) ? run.settings[name] : null);
  const first = of(runs[0]);
  return runs.some((run) => of(run) !== first);
}
