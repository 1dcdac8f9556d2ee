// The cells of the table of runs.

import {el} from "./dom.js";
import {date, duration, number} from "./format.js";
import {isRunning} from "./state.js";

export function nameCell(run) {
  const params = new URLSearchParams([["run", run.id]]);
  return el(
    "th",
    {scope: "row", class: "run-name"},
    run.group ? el("span", {class: "group"}, `${run.group}/`) : null,
    el("a", {href: `#/curves?${params}`, "data-role": "open", title: run.id}, run.name),
    run.error
      ? el(
          "details",
          {class: "error"},
          el(
            "summary",
            {"data-role": "error"},
            el("span", {class: "first"}, run.error.split("\n")[0]),
            el("span", {class: "close"}, "Close"),
          ),
          el("pre", {}, run.error),
        )
      : null,
  );
}

export function cell(run, of) {
  if (of.key === "state")
    return el("td", {class: "cell-state", "data-label": "state"}, stateOf(run));
  if (of.key === "progress")
    return el("td", {class: "cell-progress", "data-label": "progress"}, progressOf(run));
  if (of.key === "metric") {
    return el(
      "td",
      {class: "cell-metric", "data-label": run.metric ?? "metric"},
      run.metric === null
        ? "–"
        : [el("b", {}, number(run.value)), el("span", {class: "muted"}, ` ${run.metric}`)],
    );
  }
  const text = of.text ? of.text(run) : String(of.value(run) ?? "–");
  const hint = of.hint
    ? of.hint(run)
    : ["updated", "started"].includes(of.key)
      ? date(of.value(run))
      : null;
  return el(
    "td",
    {
      class: of.number ? "right" : null,
      "data-label": of.title,
      "data-extra": of.key.includes(":"),
      title: hint,
    },
    el("span", {class: "clip"}, text),
  );
}

export const stateOf = (run) => el("span", {class: `state ${run.state}`}, run.state);

function progressOf(run) {
  const steps = run.num_steps ? `${run.step}/${run.num_steps}` : String(run.step);
  if (!isRunning(run)) return el("span", {}, steps);
  const share = run.num_steps ? Math.min(1, run.step / run.num_steps) : null;
  return el(
    "div",
    {class: "going"},
    el(
      "span",
      {},
      steps,
      run.left === null ? "" : el("span", {class: "muted"}, ` · ${duration(run.left)} left`),
    ),
    share === null
      ? null
      : el(
          "div",
          {
            class: "progress",
            role: "progressbar",
            "aria-label": `Progress of ${run.name}`,
            "aria-valuemin": 0,
            "aria-valuemax": 100,
            "aria-valuenow": Math.round(100 * share),
          },
          el("i", {style: {width: `${100 * share}%`}}),
        ),
  );
}
