// The filter of runs: words, and conditions such as state:running or trainer.learning_rate>1e-4.

import {isNumber} from "./format.js";

const FIELDS = {
  name: (run) => run.id,
  run: (run) => run.id,
  group: (run) => run.group,
  state: (run) => run.state,
  method: (run) => run.method,
  model: (run) => run.model,
  step: (run) => run.step,
  num_steps: (run) => run.num_steps,
  bytes: (run) => run.bytes,
  seconds: (run) => run.seconds,
  left: (run) => run.left,
  error: (run) => run.error,
  value: (run) => run.value,
  metric: (run) => run.metric,
  updated: (run) => run.updated,
  started: (run) => run.started,
};
const has = (object, key) => Object.hasOwn(object, key);

/** The conditions of a text: [{negated, key, operator, values}] or [{negated, words}]. */
function parse(text) {
  const parts = text.match(/(?:[^\s"]|"[^"]*"?)+/g) ?? [];
  return parts.map((part) => {
    const negated = part.length > 1 && part.startsWith("-") && !/^-[\d.]/.test(part);
    const body = negated ? part.slice(1) : part;
    const found = /^("[^"]*"|[^\s"<>=!:]+?)(>=|<=|!=|==|[:=<>])(.*)$/s.exec(body);
    const bare = (piece) => piece.replaceAll('"', "");
    if (!found || found[3] === "")
      return {
        negated,
        words: bare(found ? body.replace(/[:=<>!]+$/, "") : body).toLowerCase(),
        unfinished: Boolean(found),
      };
    const operator = found[2] === "==" ? "=" : found[2];
    const pieces =
      operator === ":" || operator === "=" || operator === "!="
        ? (found[3].match(/(?:[^,"]|"[^"]*"?)+/g) ?? [])
        : [found[3]];
    return {
      negated,
      key: bare(found[1]),
      operator,
      values: pieces.map(bare),
      whole: bare(body).toLowerCase(),
    };
  });
}

/** What a run has under a name: a field of the run, a setting, a metric, or a setting's last part. */
function lookup(run, key) {
  if (has(FIELDS, key)) return FIELDS[key](run);
  if (has(run.settings, key)) return run.settings[key];
  if (has(run.metrics, key)) return run.metrics[key];
  const ending = `.${key}`;
  const setting = Object.keys(run.settings).find((name) => name.endsWith(ending));
  return setting === undefined ? undefined : run.settings[setting];
}

const texts = new WeakMap(); // a run's object is replaced when it changes, and its text with it

function textOf(run) {
  let text = texts.get(run);
  if (text === undefined) {
    const settings = Object.entries(run.settings).map(([key, value]) => `${key} ${value}`);
    text = [
      run.id,
      run.method,
      run.model,
      run.state,
      run.error ?? "",
      run.metric ?? "",
      ...settings,
      ...Object.keys(run.metrics),
    ]
      .join("\n")
      .toLowerCase();
    texts.set(run, text);
  }
  return text;
}

const asNumber = (value) => {
  if (isNumber(value)) return value;
  return typeof value === "string" && value.trim() !== "" && isNumber(Number(value))
    ? Number(value)
    : null;
};

function equal(value, text) {
  const [a, b] = [asNumber(value), asNumber(text)];
  return a !== null && b !== null ? a === b : String(value).toLowerCase() === text.toLowerCase();
}

function holds(value, {operator, values}) {
  if (value === undefined || value === null) return operator === "!=";
  if (operator === ":")
    return values.some((text) => String(value).toLowerCase().includes(text.toLowerCase()));
  if (operator === "=") return values.some((text) => equal(value, text));
  if (operator === "!=") return !values.some((text) => equal(value, text));
  const [a, b] = [asNumber(value), asNumber(values[0])];
  if ((a === null) !== (b === null)) return false; // "auto" is neither above nor below a number
  const [x, y] = a !== null ? [a, b] : [String(value), values[0]];
  return {">": x > y, ">=": x >= y, "<": x < y, "<=": x <= y}[operator];
}

/**
 * The runs that meet every condition, and the names in conditions that no run has.
 * A name before a colon that no run has is taken as text: "checkpoint:3" may be a part of a name.
 */
export function filtered(runs, text) {
  const conditions = parse(text);
  const unknown = [];
  const tests = [];
  for (const condition of conditions) {
    const {negated, key, operator, words, whole} = condition;
    if (words !== undefined) {
      // A condition that is still being typed, such as "state:", is left out until it is complete.
      if (!condition.unfinished && words)
        tests.push((run) => textOf(run).includes(words) !== negated);
    } else if (has(FIELDS, key) || runs.some((run) => lookup(run, key) !== undefined)) {
      tests.push((run) => holds(lookup(run, key), condition) !== negated);
    } else if (operator === ":") {
      tests.push((run) => textOf(run).includes(whole) !== negated);
    } else {
      unknown.push(key);
      tests.push(() => false);
    }
  }
  return {runs: runs.filter((run) => tests.every((test) => test(run))), unknown};
}
