// What the board knows of the runs, and what the address says is shown.

import {get} from "./api.js";

const SLOTS = 8; // colours; the ninth run has the first one again with another dash
const BETWEEN_WRITES = 120; // milliseconds between two changes of the address
const NEWEST = 5; // runs that are shown while none is selected

export const board = {
  root: "",
  version: null,
  complete: false,
  allowDelete: false,
  runs: new Map(),
  loaded: false,
};

/** Read what has changed since the last time; return the IDs of the runs that did. */
export async function refresh(afresh = false) {
  const since = afresh ? null : board.version;
  const answer = await get("/api/runs", [["since", since]]);
  // A server that was started again counts from the beginning, and may have missed a removal.
  if (since !== null && answer.version < since) return refresh(true);
  if (since === null) board.runs.clear();
  for (const id of answer.gone) board.runs.delete(id);
  for (const run of answer.runs) board.runs.set(run.id, run);
  board.root = answer.root;
  board.version = answer.version;
  board.complete = answer.complete;
  board.allowDelete = answer.allow_delete;
  const first = !board.loaded;
  board.loaded = true;
  return {changed: first || since === null || answer.runs.length + answer.gone.length > 0};
}

export const allRuns = () => [...board.runs.values()];
export const isRunning = (run) => run.state === "running";

// The address: #/view?name=value. What a link shows is all in there, the selection too.

export const VIEWS = [
  "runs",
  "curves",
  "settings",
  "rollouts",
  "classification",
  "evaluations",
  "disk",
];
let written = -Infinity,
  writing = 0; // time of the last change of the address, timer of the next

export const route = {view: "runs", params: new URLSearchParams()};

export function readAddress() {
  clearTimeout(writing);
  const [path, text = ""] = location.hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  route.view = VIEWS.includes(path) ? path : "runs";
  route.params = new URLSearchParams(text);
}

/** The address of a view with the selection; `changes` are its other parameters. */
export function address(view, changes = {}) {
  const params = new URLSearchParams();
  for (const id of selected()) params.append("run", id);
  apply(params, changes);
  const text = params.toString();
  return `#/${view}${text ? `?${text}` : ""}`;
}

function apply(params, changes) {
  for (const [name, value] of Object.entries(changes)) {
    params.delete(name);
    for (const item of [value].flat()) {
      if (item !== null && item !== undefined && item !== "") params.append(name, item);
    }
  }
}

const listeners = [];
/** Call `listener` whenever the parameters of the address change within a view. */
export const onParams = (listener) => listeners.push(listener);

/** Change parameters of the address in place: typing in a filter is no step to go back to. */
export function setParams(changes) {
  apply(route.params, changes);
  writeAddress();
  for (const listener of listeners) listener(Object.keys(changes));
}

/** Browsers refuse to change the address hundreds of times, as a slider would. */
function writeAddress() {
  clearTimeout(writing);
  const wait = written + BETWEEN_WRITES - performance.now();
  if (wait > 0) {
    writing = setTimeout(writeAddress, wait);
    return;
  }
  written = performance.now();
  const text = route.params.toString();
  history.replaceState(null, "", `#/${route.view}${text ? `?${text}` : ""}`);
}

export const param = (name, otherwise = "") => route.params.get(name) ?? otherwise;

// Selection

export const selected = () => route.params.getAll("run");

export function select(ids, on = true) {
  const chosen = new Set(selected());
  for (const id of ids) on ? chosen.add(id) : chosen.delete(id);
  setParams({run: [...chosen]});
}

/** The selected runs; if none is, the few that were started last and `suit`. */
export function shownRuns(suit = () => true, limit = NEWEST) {
  const ids = selected();
  if (ids.length) return ids.map((id) => board.runs.get(id)).filter(Boolean);
  return newestFirst(allRuns().filter(suit)).slice(0, limit);
}

/** By start: the time of the last line would change the order while runs are going on. */
export const newestFirst = (runs) =>
  runs.sort(
    (a, b) => (b.started ?? b.updated) - (a.started ?? a.updated) || (a.id < b.id ? -1 : 1),
  );

// Colours. A run keeps its slot as long as it is shown, whatever is selected beside it.

const SLOT_KEY = "posttrain-board-slots";
let slots = new Map(readSlots());

function readSlots() {
  try {
    return Object.entries(JSON.parse(sessionStorage.getItem(SLOT_KEY) ?? "{}"));
  } catch {
    return [];
  }
}

/** Give each of the runs, and of all selected ones, a slot of its own: the lowest that is free. */
export function assignSlots(runs) {
  const ids = [...new Set([...selected(), ...runs.map(({id}) => id)])];
  const kept = new Map(ids.filter((id) => slots.has(id)).map((id) => [id, slots.get(id)]));
  const taken = new Set(kept.values());
  let next = 0;
  for (const id of ids) {
    if (kept.has(id)) continue;
    while (taken.has(next)) next++;
    taken.add(next);
    kept.set(id, next);
  }
  slots = kept;
  sessionStorage.setItem(SLOT_KEY, JSON.stringify(Object.fromEntries(kept)));
}

const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3], [4, 6], [12, 3, 2, 3, 2, 3]];
const slotOf = (id) => slots.get(id) ?? 0;
export const colourName = (id) => `--run-${slotOf(id) % SLOTS}`;
export const dashOf = (id) => DASHES[Math.floor(slotOf(id) / SLOTS) % DASHES.length];

/** What each run of a list is called, as short as tells them apart. */
export function namesOf(runs) {
  const times = new Map();
  for (const {name} of runs) times.set(name, (times.get(name) ?? 0) + 1);
  return new Map(runs.map((run) => [run.id, times.get(run.name) > 1 ? run.id : run.name]));
}
