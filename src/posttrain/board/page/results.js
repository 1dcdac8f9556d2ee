// Parts of the view of evaluations: an accuracy as a bar, and what results say beside it.

import {el, put, scrolling} from "./dom.js";
import {count, isNumber, number, percent, whole} from "./format.js";

/** Whether two results have outcomes by problem of a task in common. */
export const comparable = (a, b) =>
  Object.entries(a.tasks).some(
    ([task, result]) => result.paired && Object.hasOwn(b.tasks, task) && b.tasks[task].paired,
  );

/** Accuracy with its 95 % interval, written and as a bar from 0 to 1. */
export function accuracy({accuracy, ci95, num_problems: problems}) {
  const interval =
    Array.isArray(ci95) && ci95.length === 2 && ci95.every(isNumber)
      ? ci95.map((end) => Math.max(0, Math.min(1, end)))
      : null;
  if (!isNumber(accuracy))
    return el("span", {class: "muted small"}, `no accuracy, ${count(problems, "row")}`);
  return el(
    "div",
    {class: "accuracy"},
    el(
      "div",
      {},
      el("b", {}, percent(accuracy)),
      el(
        "span",
        {class: "muted small"},
        interval ? ` ${(100 * interval[0]).toFixed(1)} to ${(100 * interval[1]).toFixed(1)}` : "",
        ` of ${whole(problems)}`,
      ),
    ),
    el(
      "div",
      {
        class: "interval",
        role: "img",
        "aria-label": `${percent(accuracy)}${interval ? `, 95 % interval ${percent(interval[0])} to ${percent(interval[1])}` : ""}`,
      },
      el("i", {style: {width: `${100 * Math.max(0, Math.min(1, accuracy))}%`}}),
      interval
        ? el("b", {
            style: {left: `${100 * interval[0]}%`, width: `${100 * (interval[1] - interval[0])}%`},
          })
        : null,
    ),
  );
}

/** Settings of a task that are not the same in all results that have it. */
export function differences(shown, tasks) {
  const rows = [];
  for (const task of tasks) {
    const having = shown.filter((result) => Object.hasOwn(result.tasks, task));
    const names = [
      ...new Set(having.flatMap((result) => Object.keys(result.tasks[task].settings))),
    ].sort();
    for (const name of names) {
      const values = having.map((result) =>
        Object.hasOwn(result.tasks[task].settings, name) ? result.tasks[task].settings[name] : null,
      );
      if (new Set(values).size > 1)
        rows.push({task, name, values: new Map(having.map((result, i) => [result.id, values[i]]))});
    }
  }
  return rows.length
    ? details("Settings and other facts that differ", rows, shown, (value) => value)
    : null;
}

export function figures(shown, tasks) {
  const rows = tasks.flatMap((task) => {
    const having = shown.filter((result) => Object.hasOwn(result.tasks, task));
    const names = [
      ...new Set(having.flatMap((result) => Object.keys(result.tasks[task].figures))),
    ].sort();
    return names.map((name) => ({
      task,
      name,
      values: new Map(
        having.map((result) => [result.id, result.tasks[task].figures[name] ?? null]),
      ),
    }));
  });
  return rows.length ? details("All figures", rows, shown, (value) => number(value, 5)) : null;
}

const FEW = 12; // rows; so many are shown without a click

function details(title, rows, shown, text) {
  const box = el("div");
  // Made when it is opened: results may have a hundred figures each.
  const fill = () => box.childElementCount || put(box, byResult(title, rows, shown, text));
  const open = rows.length <= FEW;
  if (open) fill();
  return el(
    "details",
    {class: "group", open, ontoggle: fill},
    el("summary", {}, title, el("span", {class: "muted"}, ` ${rows.length}`)),
    box,
  );
}

/** A table of values by row and, in columns, by result. */
function byResult(title, rows, shown, text) {
  const heads = shown.map(({name}) => el("th", {scope: "col"}, name));
  const cell = (value) =>
    value === null || value === undefined
      ? el("td", {class: "muted"}, "–")
      : el("td", {}, el("div", {}, text(value)));
  const line = ({task, name, values}) =>
    el(
      "tr",
      {},
      el("th", {scope: "row"}, `${task}: ${name}`),
      shown.map(({id}) => cell(values.get(id))),
    );
  const table = el(
    "table",
    {class: "compare"},
    el("thead", {}, el("tr", {}, el("td", {}), heads)),
    el("tbody", {}, rows.map(line)),
  );
  return scrolling(title, table);
}
