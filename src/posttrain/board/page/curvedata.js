// The points of curves: read once for a finished run, again when a run has gone on.

import {get} from "./api.js";
import {isNumber} from "./format.js";
import {board} from "./state.js";

const RUNS_AT_ONCE = 20; // a request names its runs in the address, which may not be endless
const AGAIN = 2000; // milliseconds until a large file that is still being read is asked for again

const known = new Map(); // run ID -> {names, lastStep, progress, metrics: name -> {mark, points}}
let zoomed = new Map(); // the same with finer points, for one range of steps
let zoomKey = "";

/** What tells that a run has gone on since its points were read. */
const markOf = (id) => {
  const run = board.runs.get(id);
  return run ? `${run.updated} ${run.step} ${run.state}` : "";
};

function entry(store, id) {
  if (!store.has(id))
    store.set(id, {names: [], lastStep: null, progress: 1, mark: null, metrics: new Map()});
  return store.get(id);
}

/** Metrics of a run, from its curves where they have been read, else from its last lines. */
export function metricsOf(run) {
  const last = Object.keys(run.metrics).filter((name) => isNumber(run.metrics[name]));
  return [...new Set([...last, ...(known.get(run.id)?.names ?? [])])];
}

export const progressOf = (id) => known.get(id)?.progress ?? 1;
export const wasRead = (id) => known.has(id);

/** Points of a metric of a run, the finer ones of the zoom if they have come; null before that. */
export const points = (id, metric) =>
  zoomed.get(id)?.metrics.get(metric)?.points ?? known.get(id)?.metrics.get(metric)?.points ?? null;

/** Points of the whole run, to see which steps a range of tokens or seconds is. */
export const wholePoints = (id, metric) => known.get(id)?.metrics.get(metric)?.points ?? null;

/**
 * Return {want, close}: `want({ids, metrics, range})` reads what is missing or old, one request
 * after another, and calls `arrived` after each. `range` is null or [from, to] in steps.
 */
export function reader(arrived, failed) {
  let wanted = null,
    busy = false,
    closed = false,
    timer = 0;

  async function work() {
    if (busy || closed || !wanted) return;
    busy = true;
    try {
      for (let task; !closed && (task = next());) await read(task);
    } catch (error) {
      failed(error);
    } finally {
      busy = false;
    }
    again();
  }

  /** Come back for files that are still being read, but not while nobody looks at the page. */
  function again() {
    clearTimeout(timer);
    if (closed || !wanted?.ids.some((id) => progressOf(id) < 1)) return;
    timer = setTimeout(() => {
      if (document.hidden) {
        again();
        return;
      }
      for (const id of wanted.ids) if (progressOf(id) < 1) forget(id);
      work();
    }, AGAIN);
  }

  function forget(id) {
    for (const store of [known, zoomed]) {
      const found = store.get(id);
      if (!found) continue;
      found.mark = null;
      for (const metric of found.metrics.values()) metric.mark = null;
    }
  }

  /** The next request that is needed, or null. */
  function next() {
    for (const [store, range] of [
      [known, null],
      ...(wanted.range ? [[zoomed, wanted.range]] : []),
    ]) {
      const metrics = new Set();
      const ids = wanted.ids
        .filter((id) => {
          const have = entry(store, id),
            mark = markOf(id);
          const old = wanted.metrics.filter((metric) => have.metrics.get(metric)?.mark !== mark);
          old.forEach((metric) => metrics.add(metric));
          return (
            old.length > 0 || (store === known && have.mark !== mark && !wanted.metrics.length)
          );
        })
        .slice(0, RUNS_AT_ONCE);
      if (ids.length) return {store, ids, metrics: [...metrics], range};
    }
    return null;
  }

  async function read({store, ids, metrics, range}) {
    const marks = new Map(ids.map((id) => [id, markOf(id)]));
    const answer = await get("/api/curves", [
      ...ids.map((id) => ["run", id]),
      ...metrics.map((metric) => ["metric", metric]),
      ["from", range?.[0]],
      ["to", range?.[1]],
    ]);
    for (const id of ids) {
      const have = entry(store, id),
        mark = marks.get(id),
        run = Object.hasOwn(answer.runs, id) ? answer.runs[id] : null;
      have.mark = mark;
      have.names = run?.names ?? have.names;
      have.lastStep = run?.last_step ?? have.lastStep;
      have.progress = run?.progress ?? 1;
      for (const metric of metrics)
        have.metrics.set(metric, {
          mark,
          points: run && Object.hasOwn(run.metrics, metric) ? run.metrics[metric] : null,
        });
    }
    if (!closed) arrived();
  }

  return {
    want(next) {
      wanted = next;
      const key = next.range ? next.range.join(" ") : "";
      if (key !== zoomKey) [zoomed, zoomKey] = [new Map(), key];
      work();
    },
    close() {
      closed = true;
      clearTimeout(timer);
    },
  };
}
