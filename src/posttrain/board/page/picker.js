// The choice of the columns of the table of runs.

import {DEFAULT, FIXED, offered} from "./columns.js";
import {button, el, put, toggle} from "./dom.js";
import {filtered} from "./filter.js";
import {allRuns, param, route, setParams} from "./state.js";

/** A dialog with every setting and metric of the runs, those that differ first. */
export function columnPicker() {
  const search = el("input", {
    type: "search",
    placeholder: "Find a setting or metric",
    "aria-label": "Find a column",
    oninput: () => draw(),
  });
  const list = el("div", {class: "picker-list"});
  const dialog = el(
    "dialog",
    {class: "picker", "aria-label": "Columns of the table"},
    el(
      "form",
      {method: "dialog"},
      el("h2", {}, "Columns"),
      search,
      list,
      el(
        "div",
        {class: "ends"},
        button("Defaults", () => {
          setParams({col: null});
          draw();
        }),
        el("button", {class: "main", value: "done"}, "Done"),
      ),
    ),
  );
  const chosen = () => (route.params.getAll("col").length ? route.params.getAll("col") : DEFAULT);

  function draw() {
    const words = search.value.toLowerCase();
    const runs = filtered(allRuns(), param("q")).runs;
    const {differing, metrics, same} = offered(runs);
    const now = chosen();
    const group = (title, keys) => {
      const found = keys.filter(([, name]) => name.toLowerCase().includes(words));
      return found.length
        ? el(
            "fieldset",
            {},
            el("legend", {}, title),
            found.slice(0, 300).map(([key, name]) =>
              toggle(name, now.includes(key), (on) =>
                setParams({
                  col: on ? [...chosen(), key] : chosen().filter((other) => other !== key),
                }),
              ),
            ),
          )
        : null;
    };
    put(
      list,
      group(
        "Of every run",
        Object.entries(FIXED).map(([key, {title}]) => [key, title]),
      ),
      group(
        "Settings that differ between the runs shown",
        differing.map((name) => [`s:${name}`, name]),
      ),
      group(
        "Metrics (last value)",
        metrics.map((name) => [`m:${name}`, name]),
      ),
      group(
        "Other settings",
        same.map((name) => [`s:${name}`, name]),
      ),
    );
  }
  return {
    dialog,
    open: () => {
      search.value = "";
      draw();
      dialog.showModal();
    },
  };
}
