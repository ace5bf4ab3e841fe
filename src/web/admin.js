// The operator's page: how the models do, what the last hour was like, and what can be done about it.

import { Api, Refusal } from "./api.js";
import { announce, byId, duration, h, setText } from "./dom.js";
import { describeError } from "./patience.js";
import { Plot } from "./plot.js";

const POLL_MS = 2_000;
const HISTORY_POLL_MS = 10_000;

const api = new Api("admin.key", askForKey);
/** @type {Map<string, ModelPanel>} */
const panels = new Map();
let generation = 0;

/** One model's figures and plots. */
class ModelPanel {
  constructor(name, task) {
    this.name = name;
    this.task = task;
    this.state = h("span", { class: "badge" });
    this.drain = h("button", { type: "button", text: "Drain", onclick: () => this.#drain() });
    this.figures = h("dl", { class: "tiles" });
    this.devices = h("dl", { class: "tiles", "aria-label": `Devices of ${name}` });
    const text = task === "text";
    this.plots = {
      throughput: new Plot("Throughput", text ? "tokens/s" : "steps/s"),
      latency: new Plot("Step time, mean and longest", "ms"),
      fill: new Plot("Rows in a step", "rows"),
      rows: new Plot("Rows running and waiting", "rows"),
      memory: new Plot(text ? "KV memory" : "Latent memory", "%", 100),
      refusals: new Plot("Refused and failed", "a minute"),
    };
    const head = h("div", { class: "model-head" }, h("h2", { text: name }), this.state, h("span", { class: "spacer" }), this.drain);
    const plots = Object.values(this.plots).map((plot) => plot.root);
    this.root = h("section", { class: "model", "aria-label": name }, head, this.figures, this.devices, h("div", { class: "plots" }, ...plots));
  }

  show(model) {
    this.model = model;
    setText(this.state, model.state);
    this.state.dataset.state = model.state;
    this.drain.disabled = model.state !== "ready";
    const memory = model.memory_units_total ? (100 * model.memory_units_used) / model.memory_units_total : 0;
    const tiles = [
      ["Running", `${model.running_rows} of ${model.slots}`],
      ["Waiting", `${model.waiting_requests}`],
      ["A newcomer starts", model.eta_ms === null ? "unknown" : model.eta_ms < 100 ? "at once" : `in ${duration(model.eta_ms)}`],
      [this.task === "text" ? "KV memory" : "Latent memory", `${memory.toFixed(0)} %`],
    ];
    if (this.task === "text") tiles.push(["Prompt tokens held", model.queued_tokens.toLocaleString("en")], ["Kept for prefixes", `${model.memory_units_cached} blocks`]);
    const shown = (pairs) => pairs.map(([name, value]) => h("div", {}, h("dt", { text: name }), h("dd", { text: value })));
    this.figures.replaceChildren(...shown(tiles));
    // One device says no more than the model does.
    const devices = model.devices.length > 1 ? model.devices : [];
    this.devices.replaceChildren(...shown(devices.map((device) => [`Device ${device.name}`, deviceState(device)])));
  }

  showHistory(points, resolutionMs) {
    const seconds = resolutionMs / 1000;
    // The last point is still going on: its sums would look like a fall.
    const whole = points.slice(0, -1);
    const each = (value) => whole.map(value);
    const output = this.task === "text" ? (point) => point.tokens : (point) => point.iterations;
    const total = this.model?.memory_units_total || 1;
    this.plots.throughput.show([{ name: "throughput", values: each((point) => output(point) / seconds) }], seconds);
    this.plots.latency.show(
      [
        { name: "mean", values: each((point) => (point.passes ? point.pass_ms / point.passes : null)) },
        { name: "longest", values: each((point) => (point.passes ? point.longest_pass_ms : null)) },
      ],
      seconds,
    );
    this.plots.fill.show([{ name: "rows", values: each((point) => (point.passes ? point.pass_rows / point.passes : null)) }], seconds);
    this.plots.rows.show(
      [
        { name: "running", values: each((point) => point.running_rows) },
        { name: "waiting", values: each((point) => point.waiting_rows) },
      ],
      seconds,
    );
    this.plots.memory.show([{ name: "memory", values: each((point) => (100 * point.memory_units_used) / total) }], seconds);
    this.plots.refusals.show(
      [
        { name: "refused", values: each((point) => (point.refused * 60) / seconds) },
        { name: "failed", values: each((point) => (point.failed * 60) / seconds) },
      ],
      seconds,
    );
  }

  async #drain() {
    const sure = await confirm(`Drain ${this.name}?`, "It takes no more requests and finishes what it has. Only a restart of the service brings it back.", "Drain");
    if (sure) await act(() => api.call("POST", `/api/v1/admin/models/${encodeURIComponent(this.name)}/drain`), `${this.name} drains`);
  }
}

function deviceState({ state, reason, running_rows, slots }) {
  if (state === "ready") return `${running_rows} of ${slots} running`;
  return reason ? `${state}: ${reason}` : state;
}

function showRequests({ requests, more_requests }) {
  byId("requests").hidden = false;
  const body = byId("request-rows");
  const focused = document.activeElement?.dataset?.cancel;
  const rows = requests.map((request) =>
    h(
      "tr",
      {},
      h("td", {}, h("code", { text: request.id })),
      h("td", { text: request.model }),
      h("td", { text: request.owner ?? "none" }),
      h("td", { text: stateOf(request) }),
      h("td", { class: "right", text: duration(request.age_ms) }),
      h("td", { class: "right", text: String(request.choices) }),
      h("td", { class: "right" }, h("button", { type: "button", "data-cancel": request.id, "aria-label": `Cancel ${request.id}`, text: "Cancel", onclick: () => cancel(request.id) })),
    ),
  );
  if (!rows.length) rows.push(h("tr", {}, h("td", { colSpan: 7, class: "none", text: "Nothing waits and nothing runs." })));
  body.replaceChildren(...rows);
  if (focused) body.querySelector(`[data-cancel="${focused}"]`)?.focus();
  setText(byId("requests-more"), more_requests ? `and ${more_requests} more` : "");
}

function stateOf({ state, position, progress, events }) {
  if (state === "queued") return position === null ? "queued" : `queued, ${position} ahead`;
  return progress ? `running, step ${progress[0]} of ${progress[1]}` : `running, ${events} events`;
}

function cancel(id) {
  return act(() => api.call("DELETE", `/api/v1/admin/requests/${id}`), "Cancelled");
}

async function act(work, done) {
  try {
    await work();
    announce(done);
    await showOverview();
  } catch (error) {
    notice(describeError(error));
  }
}

function confirm(title, text, yes) {
  setText(byId("confirm-title"), title);
  setText(byId("confirm-text"), text);
  setText(byId("confirm-yes"), yes);
  const dialog = byId("confirm");
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

async function showOverview() {
  const overview = await api.json("GET", "/api/v1/admin/overview");
  for (const model of overview.models) {
    if (!panels.has(model.name)) {
      const panel = new ModelPanel(model.name, model.task);
      panels.set(model.name, panel);
      byId("models").append(panel.root);
    }
    panels.get(model.name).show(model);
  }
  showRequests(overview);
  const megabytes = (overview.event_bytes / 1e6).toFixed(1);
  setText(byId("state"), `version ${overview.version} · up ${duration(overview.up_ms)} · ${megabytes} MB of events kept`);
  byId("leave").hidden = false;
  notice("");
}

async function showHistory() {
  const history = await api.json("GET", "/api/v1/admin/history");
  for (const { name, points } of history.models) panels.get(name)?.showHistory(points, history.resolution_ms);
}

/** Repeats until the key is asked for again. */
async function repeat(show, interval, own = generation) {
  while (own === generation) {
    if (!document.hidden) {
      try {
        await show();
      } catch (error) {
        if (error instanceof Refusal && error.status === 401) return;
        notice(describeError(error));
        if (error instanceof Refusal && error.status === 404) return;
      }
    }
    await new Promise((resolve) => setTimeout(resolve, interval));
  }
}

async function start() {
  generation += 1;
  const own = generation;
  if (!api.key) return askForKey();
  await showOverview().catch(() => {});
  repeat(showOverview, POLL_MS, own);
  repeat(showHistory, HISTORY_POLL_MS, own);
}

function notice(text) {
  byId("notice").hidden = !text;
  setText(byId("notice"), text);
}

function askForKey() {
  const dialog = byId("key-dialog");
  if (!dialog.open) dialog.showModal();
}

byId("key-form").addEventListener("submit", () => {
  api.key = byId("key").value.trim();
  byId("key").value = "";
  start();
});
byId("leave").addEventListener("click", () => {
  api.key = "";
  location.reload();
});
start();
