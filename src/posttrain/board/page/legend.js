// The runs of a view with their colours: hide one, take one out of the selection.

import {button, el, putIf} from "./dom.js";
import {swatch} from "./swatch.js";
import {
  address,
  board,
  colourName,
  dashOf,
  namesOf,
  route,
  select,
  selected,
  setParams,
} from "./state.js";

export const chosenRuns = (name) => route.params.getAll(name);

/** Show the runs of a view in a line. With `hides`, a click hides a run or shows it again. */
export function showLegend(host, runs, {hides = false} = {}) {
  const key = JSON.stringify([
    runs.map(({id}) => id),
    selected(),
    chosenRuns("hide"),
    board.runs.size,
  ]);
  putIf(host, key, () => legend(runs, hides));
}

function legend(runs, hides) {
  const chosen = selected().length > 0;
  const gone = selected().filter((id) => !board.runs.has(id)).length;
  const short = namesOf(runs);
  const hidden = new Set(chosenRuns("hide"));
  return el(
    "div",
    {class: "legend", role: "group", "aria-label": "Runs shown"},
    runs.map((run) => {
      const name = [swatch(colourName(run.id), dashOf(run.id)), el("span", {}, short.get(run.id))];
      return el(
        "span",
        {class: "legend-run"},
        hides
          ? button(name, () => flip(run.id), {
              class: "chip",
              "aria-pressed": String(!hidden.has(run.id)),
              title: `${run.id}: hide or show`,
              "data-role": `hide ${run.id}`,
            })
          : el("span", {class: "name", title: run.id}, name),
        chosen
          ? button("×", () => select([run.id], false), {
              class: "link remove",
              "aria-label": `Take ${run.name} out of the selection`,
            })
          : null,
      );
    }),
    chosen
      ? null
      : el(
          "span",
          {class: "muted small"},
          runs.length ? "the newest runs, as none is selected" : "",
          " ",
          el("a", {href: address("runs")}, "Select runs"),
        ),
    gone
      ? el(
          "span",
          {class: "muted small"},
          `${gone} selected ${gone === 1 ? "run is" : "runs are"} not there (any more)`,
        )
      : null,
  );
}

function flip(id) {
  const hidden = new Set(chosenRuns("hide"));
  if (!hidden.delete(id)) hidden.add(id);
  setParams({hide: [...hidden]});
}

/** The name of a run with its colour. */
export const runLabel = (run, name = run.name) =>
  el("span", {class: "name", title: run.id}, swatch(colourName(run.id), dashOf(run.id)), name);
