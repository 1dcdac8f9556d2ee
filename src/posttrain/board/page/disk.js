// What the runs take on the disk, and the deletion of runs and checkpoints.

import {get, hasKey, post} from "./api.js";
import {announce, button, el, empty, inPortions, put, setText} from "./dom.js";
import {bytes, count, percent} from "./format.js";
import {stateOf} from "./runcells.js";
import {allRuns, board, selected, setParams} from "./state.js";

export function show(host) {
  const opened = new Map(); // run ID -> its list of parts
  const line = el("div", {class: "card disk-head"}),
    note = el("p", {class: "small muted"}),
    list = el("div", {class: "card"});
  const nothing = el("div");
  const result = el("p", {class: "small", role: "status"});
  const dialog = el("dialog", {"aria-labelledby": "delete-title"});
  let order = "",
    closed = false;
  put(host, line, note, result, list, nothing, dialog);
  update();

  async function readTotal() {
    try {
      const {free, total} = await get("/api/disk");
      if (closed) return;
      put(
        line,
        el(
          "div",
          {class: "disk-facts"},
          el("span", {}, el("b", {}, bytes(total)), " in ", count(board.runs.size, "run")),
          el("span", {}, el("b", {}, bytes(free)), " free"),
        ),
        el(
          "div",
          {
            class: "bar-line",
            role: "img",
            "aria-label": `${percent(total / (total + free))} of the runs and the free space together`,
          },
          el("i", {style: {width: `${(100 * total) / (total + free || 1)}%`}}),
        ),
      );
    } catch (error) {
      if (!closed && !error.gone) put(line, el("p", {class: "note"}, error.message));
    }
  }

  function update() {
    setText(
      note,
      !board.allowDelete
        ? "Nothing can be deleted from here: start the board with posttrain board --allow-delete to allow it."
        : !hasKey()
          ? "To delete, open the address that the command has printed: it ends in a key that this tab does not have."
          : "",
    );
    note.hidden = note.textContent === "";
    const marked = new Set(selected());
    const runs = allRuns()
      .filter(({id}) => !marked.size || marked.has(id))
      .sort((a, b) => b.bytes - a.bytes || (a.id < b.id ? -1 : 1));
    // The parts of a run stay open: the list is made again only if the runs or their sizes changed.
    const next = JSON.stringify(runs.map(({id, bytes, state}) => [id, bytes, state]));
    if (next === order) return;
    order = next;
    readTotal();
    list.hidden = !runs.length;
    put(nothing, runs.length ? [] : empty("No runs"));
    const largest = runs[0]?.bytes || 1;
    inPortions(list, runs, (run) => row(run, largest), 80);
  }

  function row(run, largest) {
    const parts = opened.get(run.id) ?? el("div", {class: "parts"});
    const box = el(
      "details",
      {
        class: "disk-run",
        "data-run": run.id,
        open: opened.has(run.id),
        ontoggle: () => {
          if (box.open && !opened.has(run.id)) {
            opened.set(run.id, parts);
            readParts(run, parts);
          }
          if (!box.open) opened.delete(run.id);
        },
      },
      el(
        "summary",
        {},
        el(
          "span",
          {class: "disk-name"},
          run.group ? el("span", {class: "muted"}, `${run.group}/`) : null,
          run.name,
        ),
        stateOf(run),
        el(
          "span",
          {class: "bar-line", "aria-hidden": "true"},
          el("i", {style: {width: `${(100 * run.bytes) / largest}%`}}),
        ),
        el("b", {class: "right"}, bytes(run.bytes)),
      ),
      parts,
    );
    return box;
  }

  async function readParts(run, box) {
    try {
      const answer = await get("/api/disk", [["run", run.id]]);
      if (closed) return;
      const may = board.allowDelete && hasKey();
      const parts = [...answer.parts].sort((a, b) => b.bytes - a.bytes);
      put(
        box,
        parts.map((part) =>
          el(
            "div",
            {class: "disk-part"},
            el("span", {class: "disk-name"}, part.name),
            el("span", {class: "muted"}, part.kind),
            may && part.deletable
              ? button(
                  "Delete",
                  () => confirm(run, part.name, part.bytes, part.used_by ?? [], box),
                  {"aria-label": `Delete ${part.name} of ${run.name}`},
                )
              : el("span"),
            el("span", {class: "right"}, bytes(part.bytes)),
          ),
        ),
        may
          ? answer.deletable
            ? button(
                "Delete the whole run",
                () =>
                  confirm(
                    run,
                    null,
                    parts.reduce((sum, part) => sum + part.bytes, 0),
                    answer.used_by ?? [],
                    box,
                  ),
                {class: "whole"},
              )
            : el("p", {class: "small muted"}, `It cannot be deleted: ${answer.why_not}.`)
          : null,
      );
    } catch (error) {
      if (!closed) put(box, el("p", {class: "note"}, error.message));
    }
  }

  function confirm(run, part, size, usedBy, box) {
    const what = part === null ? "the run" : part;
    const cancel = button("Cancel", () => dialog.close());
    const sure = button(`Delete ${what} (${bytes(size)})`, () => remove(run, part, what, box), {
      class: "danger",
    });
    put(
      dialog,
      el(
        "form",
        {method: "dialog"},
        el("h2", {id: "delete-title"}, part === null ? "Delete the whole run?" : `Delete ${part}?`),
        el(
          "p",
          {},
          "The folder ",
          el("b", {}, part === null ? run.id : `${run.id}/${part}`),
          ` in ${board.root} is deleted`,
          part === null
            ? ", with all its checkpoints, metrics and samples."
            : ". The run’s other checkpoints, its metrics and its samples stay.",
        ),
        el("p", {}, `This frees ${bytes(size)}. It cannot be undone.`),
        usedBy.length
          ? el(
              "p",
              {class: "note"},
              `Still named in the settings of ${usedBy.slice(0, 5).join(", ")}${usedBy.length > 5 ? ` and ${usedBy.length - 5} more` : ""}: what starts from it can then not be resumed or repeated.`,
            )
          : null,
        el("div", {class: "ends"}, cancel, sure),
      ),
    );
    dialog.showModal();
    cancel.focus();
  }

  async function remove(run, part, what, box) {
    dialog.close();
    setText(result, `Deleting ${what} of ${run.name}…`);
    try {
      const {freed} = await post("/api/delete", {run: run.id, part});
      setText(
        result,
        `Deleted ${part === null ? run.id : `${part} of ${run.id}`}: ${bytes(freed)} freed.`,
      );
      if (part === null) {
        opened.delete(run.id);
        board.runs.delete(run.id);
        if (selected().includes(run.id)) setParams({run: selected().filter((id) => id !== run.id)});
        update();
      } else await readParts(run, box);
      readTotal();
    } catch (error) {
      setText(result, `Nothing was deleted: ${error.message}`);
    }
    announce(result.textContent);
  }

  return {
    update() {
      update();
    },
    close() {
      closed = true;
      dialog.remove();
    },
  };
}
