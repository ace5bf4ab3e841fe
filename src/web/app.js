// The page's beginning: what is served, which tab, which key, what runs now.

import { Api, Refusal } from "./api.js";
import { Chat } from "./chat.js";
import { sharedSettings } from "./controls.js";
import { announce, byId, copyText, h, setText } from "./dom.js";
import { Feed } from "./feed.js";
import { Images } from "./images.js";
import { describeError, describeLoad } from "./patience.js";
import { read, write } from "./storage.js";

/** How often the service is asked what runs: while something of ours waits, and otherwise. */
const BUSY_POLL_MS = 3_000;
const IDLE_POLL_MS = 20_000;
const SOON_MS = 300;
const START_RETRY_MS = 2_000;

const api = new Api("key", askForKey);
const feed = new Feed(api, (state) => {
  connection = state;
  showState();
});
const chat = new Chat(api, feed, soon);
const images = new Images(api, feed, soon);
const TABS = [
  ["chat", chat],
  ["images", images],
];

let connection = "idle";
let load = [];
let started = false;

function currentTab() {
  return byId("tab-images").getAttribute("aria-selected") === "true" ? "images" : "chat";
}

function select(name, focus = false) {
  for (const [tab] of TABS) {
    const chosen = tab === name;
    const button = byId(`tab-${tab}`);
    button.setAttribute("aria-selected", String(chosen));
    button.tabIndex = chosen ? 0 : -1;
    if (chosen && focus) button.focus();
    byId(tab).hidden = !chosen;
  }
  byId("settings-toggle").hidden = name !== "chat";
  write("tab", name);
  showState();
}

function watchTabs() {
  const list = document.querySelector('[role="tablist"]');
  list.addEventListener("click", (event) => {
    const tab = event.target.closest('[role="tab"]');
    if (tab) select(tab.getAttribute("aria-controls"));
  });
  list.addEventListener("keydown", (event) => {
    if (["ArrowLeft", "ArrowRight"].includes(event.key)) select(currentTab() === "chat" ? "images" : "chat", true);
  });
}

/** Shows the models of one tab, and keeps the choice. */
function offer(name, view, models) {
  byId(`tab-${name}`).hidden = models.length === 0;
  if (!models.length) return;
  const choice = byId(`${name === "chat" ? "chat" : "image"}-model`);
  choice.replaceChildren(...models.map((model) => h("option", { value: model.name, text: model.name })));
  const { tab, values } = sharedSettings();
  const wanted = (tab === name && values.model) || read(`${name}.model`);
  if (models.some((model) => model.name === wanted)) choice.value = wanted;
  choice.closest(".row").hidden = models.length < 2;
  choice.addEventListener("change", () => {
    write(`${name}.model`, choice.value);
    view.setModels(models);
    showState();
  });
  view.setModels(models);
}

async function start() {
  let models;
  try {
    ({ models } = await api.models());
  } catch (error) {
    if (!(error instanceof Refusal && error.status === 401)) {
      notice(`${describeError(error)} Trying again.`);
      setTimeout(start, START_RETRY_MS);
    }
    return;
  }
  notice("");
  if (started) return;
  started = true;
  const chatting = models.filter(({ task, chat: chats }) => task === "text" && chats);
  const drawing = models.filter(({ task }) => task === "image");
  offer("chat", chat, chatting);
  offer("images", images, drawing);
  if (!chatting.length && !drawing.length) {
    notice("No model that can chat or draw is served here.");
    return;
  }
  document.querySelector('[role="tablist"]').hidden = !(chatting.length && drawing.length);
  const asked = sharedSettings().tab || read("tab");
  const open = { chat: chatting.length > 0, images: drawing.length > 0 };
  select(open[asked] ? asked : open.chat ? "chat" : "images");
  if (open.images) images.open();
  if (open.chat) await chat.open();
  document.documentElement.dataset.ready = "";
  poll();
}

let pollTimer = 0;

/** Something has begun: what runs is asked for at once, when it may be among it. */
function soon() {
  clearTimeout(pollTimer);
  pollTimer = setTimeout(poll, SOON_MS);
}

/** Asks what runs, more often while somebody here waits. */
async function poll() {
  clearTimeout(pollTimer);
  if (!document.hidden && started) {
    try {
      load = (await api.load()).models;
    } catch {
      load = [];
    }
    showState();
  }
  pollTimer = setTimeout(poll, isBusy() ? BUSY_POLL_MS : IDLE_POLL_MS);
}

function isBusy() {
  return Boolean(chat.active) || images.jobs.some(({ state }) => state === "queued" || state === "running");
}

function showState() {
  const model = currentTab() === "chat" ? chat.model : images.model;
  const mine = load.find(({ name }) => name === model?.name);
  const says = {
    offline: "Offline: goes on when the network is back",
    connecting: isBusy() ? "Connecting" : "",
  }[connection];
  setText(byId("state"), says || (mine ? `${mine.name}: ${describeLoad(mine)}` : ""));
  byId("state").dataset.connection = connection;
}

function notice(text) {
  const place = byId("notice");
  place.hidden = !text;
  setText(place, text);
}

function askForKey() {
  const dialog = byId("key-dialog");
  if (!dialog.open) dialog.showModal();
}

byId("key-form").addEventListener("submit", () => {
  api.key = byId("key").value.trim();
  byId("key").value = "";
  if (started) feed.reconnect();
  else start();
});
byId("share").addEventListener("click", async () => {
  const link = (currentTab() === "chat" ? chat : images).link();
  await copyText(link);
  history.replaceState(null, "", link);
  const button = byId("share");
  button.textContent = "Link copied";
  announce("Link copied");
  setTimeout(() => (button.textContent = "Share"), 1500);
});
byId("settings-toggle").addEventListener("click", () => {
  const open = document.body.classList.toggle("side-open");
  byId("settings-toggle").setAttribute("aria-expanded", String(open));
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !document.body.classList.contains("side-open")) return;
  document.body.classList.remove("side-open");
  byId("settings-toggle").setAttribute("aria-expanded", "false");
  byId("settings-toggle").focus();
});
watchTabs();
start();
