// Start of the page: the views, the polling of the server, and the header.

import {takeKey} from "./api.js";
import {$, announce, el, empty, put, putIf, setText} from "./dom.js";
import {count} from "./format.js";
import {
  VIEWS,
  address,
  allRuns,
  board,
  isRunning,
  onParams,
  readAddress,
  refresh,
  route,
  select,
  selected,
} from "./state.js";

const TITLES = {
  runs: "Runs",
  curves: "Curves",
  settings: "Settings",
  rollouts: "Rollouts",
  classification: "Classification",
  evaluations: "Evaluations",
  disk: "Disk",
};
const BUSY = 2000,
  IDLE = 10_000; // milliseconds between two readings

let current = null; // the open view: {update(reason), close()}
let opened = null; // its name
let opening = 0; // number of the last attempt to open a view
let timer = 0;
let failed = false;

async function open() {
  readAddress();
  header();
  $("#tooltip").hidden = true;
  if (!board.loaded) return;
  if (opened === route.view && current) {
    current.update(["address"]);
    return;
  }
  const name = route.view;
  const turn = ++opening;
  current?.close?.();
  current = null;
  document.title = `${TITLES[name]} – posttrain board`;
  try {
    const module = await import(`./${name}.js`);
    if (turn !== opening) return; // another view was opened while this one was read
    const host = el("div", {class: `view ${name}`});
    put($("#main"), host);
    window.scrollTo(0, 0);
    current = module.show(host);
    if (opened !== null) announce(TITLES[name]);
    opened = name;
  } catch (error) {
    put($("#main"), empty("This view could not be shown", error.message, "Reload the page."));
  }
}

function header() {
  const here = $("nav [aria-current]")?.dataset.view;
  for (const link of document.querySelectorAll("nav a")) {
    link.href = address(link.dataset.view);
    if (link.dataset.view === route.view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (here !== route.view)
    $("nav [aria-current]").scrollIntoView({block: "nearest", inline: "center"});
  const chosen = selected().filter((id) => board.runs.has(id)).length;
  const running = allRuns().filter(isRunning).length;
  putIf(
    $("#summary"),
    JSON.stringify([board.root, board.complete, board.runs.size, running, chosen]),
    () => [
      el("span", {class: "root", title: board.root}, board.root),
      el(
        "span",
        {},
        board.complete || !board.loaded ? "" : "reading… ",
        count(board.runs.size, "run"),
        running ? `, ${running} running` : "",
      ),
      chosen
        ? el(
            "button",
            {
              type: "button",
              class: "link",
              "data-role": "clear",
              onclick: () => select(selected(), false),
            },
            `${chosen} selected: clear`,
          )
        : null,
    ],
  );
}

/** Read the runs, tell the view, and come again: soon while something runs, else seldom. */
async function poll() {
  clearTimeout(timer);
  if (document.hidden) return; // visibilitychange starts it again
  try {
    const {changed} = await refresh(failed || board.version === null);
    trouble(null);
    const first = current === null;
    if (changed || !board.complete) header();
    if (first) await open();
    else if (changed) current.update(["runs"]);
    failed = false;
  } catch (error) {
    failed = true;
    trouble(
      error.gone
        ? "The server does not answer: it was stopped, or the machine is busy. This page shows what it knew last, and goes on by itself when the server is back."
        : error.message,
    );
    if (!board.loaded)
      put(
        $("#main"),
        empty("Nothing has been read yet", "The server of this page does not answer."),
      );
  }
  const busy = failed || !board.complete || allRuns().some(isRunning);
  clearTimeout(timer);
  timer = setTimeout(poll, busy ? BUSY : IDLE);
}

function trouble(text) {
  const line = $("#trouble");
  setText(line, text ?? "");
  line.hidden = text === null;
}

takeKey();
readAddress();
put(
  $("nav"),
  VIEWS.map((view) => el("a", {"data-view": view}, TITLES[view])),
);
put($("#main"), el("p", {class: "muted"}, "Reading the runs…"));
window.addEventListener("hashchange", () => {
  if (location.hash.startsWith("#key=")) takeKey();
  open();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) poll();
});
onParams((names) => {
  if (names.includes("run")) header();
  current?.update(names);
});
poll();
