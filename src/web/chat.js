// The chat: what is asked, what is answered, and what one can do about it.

import { Refusal, Unreachable } from "./api.js";
import { Controls, shareLink, sharedSettings } from "./controls.js";
import { Conversation } from "./conversation.js";
import { announce, byId, copyButton, copyText, duration, h, icon, iconButton, oncePerFrame, randomId, setText } from "./dom.js";
import { MarkdownView } from "./markdown.js";
import { describeError, describePlace, Retry } from "./patience.js";

const ACTIVE = new Set(["submitting", "queued", "running"]);
/** Nearer to the end than this, the view stays at the end when text comes in. */
const NEAR_END_PX = 80;

/** @type {import("./controls.js").Setting[]} */
const settingsFor = (model) => {
  const text = model.text ?? {};
  return [
    { name: "system", label: "System prompt", kind: "long", fallback: "You are a helpful assistant." },
    { name: "temperature", label: "Temperature", kind: "number", min: 0, max: text.max_temperature ?? 2, step: 0.05, fallback: round(text.temperature) },
    { name: "top_p", label: "Top p", kind: "number", min: 0.01, max: 1, step: 0.01, fallback: round(text.top_p) },
    { name: "top_k", label: "Top k", kind: "number", min: 0, step: 1, fallback: text.top_k || "all" },
    { name: "min_p", label: "Min p", kind: "number", min: 0, max: 1, step: 0.01, fallback: round(text.min_p) },
    { name: "repetition_penalty", label: "Repeat penalty", kind: "number", min: 0.1, max: 2, step: 0.05, fallback: round(text.repetition_penalty) },
    { name: "max_tokens", label: "Max tokens", kind: "number", min: 1, max: text.max_new_tokens ?? model.max_context, step: 1, fallback: text.max_tokens ?? "as fits" },
    { name: "seed", label: "Seed", kind: "number", min: 0, step: 1, fallback: "random" },
    { name: "detach", label: "Finish even while I am away", kind: "switch", fallback: true },
  ];
};

const round = (number) => (number === undefined ? undefined : Number(number.toPrecision(4)));

export class Chat {
  /** @type {Conversation} */
  conversation;
  /** @type {Map<string, MessageView>} */
  #views = new Map();
  #list = byId("messages");
  #scroller = byId("chat-scroll");
  #composer = byId("composer");
  #prompt = byId("prompt");
  #send = byId("send");
  #models = [];
  #stays = true;

  /**
   * @param {import("./api.js").Api} api
   * @param {import("./feed.js").Feed} feed
   * @param {() => void} onActivity called when something begins that is waited for
   */
  constructor(api, feed, onActivity) {
    this.api = api;
    this.feed = feed;
    this.onActivity = onActivity;
    this.controls = new Controls(byId("chat-settings"), "chat");
    this.draw = oncePerFrame(() => this.#drawNow());
    byId("composer-form").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.active) this.stop();
      else this.ask();
    });
    this.#prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        if (!this.active) this.ask();
      }
    });
    this.#prompt.addEventListener("input", () => this.#fitPrompt());
    byId("new-chat").addEventListener("click", () => this.startAnew());
    this.#scroller.addEventListener("scroll", () => (this.#stays = this.#nearEnd()), { passive: true });
    this.#list.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-copy]");
      if (!button) return;
      copyText(button.closest(".code").querySelector("code").textContent);
      announce("Copied");
    });
    // Places in the queue are counted down.
    setInterval(() => {
      if (this.active) this.#view(this.active)?.changed();
    }, 1000);
  }

  /** @returns {import("./conversation.js").Message|undefined} the answer that is being waited for */
  get active() {
    // There is no conversation before the service has said what it serves.
    return this.conversation?.messages.find((message) => ACTIVE.has(message.state));
  }

  get model() {
    return this.#models.find(({ name }) => name === byId("chat-model").value) ?? this.#models[0];
  }

  /** Shows the models that can chat, and settings for the one that is chosen. */
  setModels(models) {
    this.#models = models;
    this.controls.show(settingsFor(this.model));
  }

  async open() {
    this.conversation = await Conversation.open();
    const { tab, values } = sharedSettings();
    if (tab === "chat") this.controls.fill(values);
    this.#showAll();
    for (const message of this.conversation.messages) this.#resume(message);
  }

  #showAll() {
    this.#views.clear();
    this.#list.replaceChildren();
    for (const message of this.conversation.messages) this.#show(message);
    this.#stays = true;
    this.#changed();
  }

  #show(message) {
    const view = new MessageView(message, this);
    this.#views.set(message.id, view);
    this.#list.append(view.root);
    view.changed();
  }

  #view(message) {
    return this.#views.get(message.id);
  }

  /** Goes on with what was under way when the page was left. */
  #resume(message) {
    if (message.state === "submitting" || message.state === "refused") {
      message.state = "submitting";
      this.#submit(message);
    } else if (ACTIVE.has(message.state)) {
      message.resumed = true;
      this.#follow(message);
    }
  }

  startAnew() {
    if (this.active) this.stop();
    this.conversation = Conversation.start();
    this.#showAll();
    this.#prompt.focus();
  }

  ask() {
    const text = this.#prompt.value.trim();
    if (!text || !this.conversation || this.controls.complaint()) return;
    this.#prompt.value = "";
    this.#fitPrompt();
    this.#show(this.conversation.add({ role: "user", text, state: "done" }));
    this.#stays = true;
    this.#answer();
  }

  /** Has the last question answered. */
  #answer() {
    const { system, ...settings } = this.controls.values();
    const said = this.conversation.messages.filter(({ text, role }) => text || role === "user");
    const messages = said.map(({ role, text }) => ({ role, content: text }));
    if (system) messages.unshift({ role: "system", content: system });
    const model = this.model.name;
    const message = this.conversation.add({
      role: "assistant",
      text: "",
      state: "submitting",
      model,
      tokens: 0,
      after: 0,
      idempotencyKey: randomId(),
      body: { model, messages, ...settings },
    });
    this.#show(message);
    this.#submit(message);
  }

  /** Answers the question before this message anew. */
  regenerate(message) {
    if (this.active) return;
    for (const gone of this.conversation.messages.slice(this.conversation.messages.indexOf(message))) {
      this.#view(gone).root.remove();
      this.#views.delete(gone.id);
    }
    this.conversation.cutFrom(message);
    this.#stays = true;
    this.#answer();
  }

  /** @param {import("./conversation.js").Message} message */
  async #submit(message) {
    message.state = "submitting";
    message.sentAt = Date.now();
    this.#update(message, true);
    this.onActivity();
    try {
      const { id } = await this.api.submit(message.body, message.idempotencyKey);
      message.request = id;
      // It was stopped before it had got through.
      if (message.state !== "submitting") return void this.api.cancel(id).catch(() => {});
      message.state = "queued";
      // The conversation up to here is known from the other messages; it need not be kept twice.
      delete message.body;
      this.#update(message, true);
      this.#follow(message);
    } catch (error) {
      this.#refused(message, error);
    }
  }

  #refused(message, error) {
    const view = this.#view(message);
    if (error instanceof Unreachable || (error instanceof Refusal && (error.isPassing || error.status === 409))) {
      message.state = "refused";
      message.note = describeError(error);
      view.retry ??= new Retry(
        () => this.#submit(message),
        () => view.changed(),
      );
      view.retry.refused(error);
    } else {
      message.state = "failed";
      message.note = describeError(error);
    }
    this.#update(message, true);
  }

  /** Leaves a refused answer be. */
  giveUp(message) {
    message.state = "stopped";
    message.note = "Not sent.";
    this.#update(message, true);
  }

  #follow(message) {
    this.feed.follow(message.request, message.after, (event, data, seq) => {
      message.after = seq;
      this.#hear(message, event, data);
    });
  }

  #hear(message, event, data) {
    const before = message.state;
    switch (event) {
      case "queued":
        message.place = { ...data, heardAt: Date.now() };
        break;
      case "started":
        message.state = "running";
        message.place = null;
        break;
      case "text":
      case "choice_finished":
        for (const choice of data.choices) {
          if (choice.text || choice.tokens.length) message.firstAt ??= Date.now();
          message.text += choice.text;
          message.tokens += choice.tokens.length;
          message.finish = choice.finish_reason ?? message.finish;
        }
        break;
      case "finished":
        this.#end(message, message.finish === "cancelled" ? "stopped" : "done");
        break;
      case "failed":
        message.note = describeError(new Refusal(0, data.error, null));
        this.#end(message, "failed");
        break;
      case "gone":
        message.note = describeError(new Refusal(data.status, data.error ?? {}, null));
        this.#end(message, "failed");
        break;
    }
    this.#update(message, message.state !== before);
  }

  #end(message, state) {
    message.state = state;
    message.endedAt = Date.now();
    message.place = null;
    announce(`${message.text.slice(0, 4000)} ${message.note ?? ""}`);
    if (message.resumed && state !== "failed") this.#learnTimes(message);
  }

  /** The page was not there all the time; the service was. */
  async #learnTimes(message) {
    try {
      const { timings } = await this.api.status(message.request);
      message.sentAt = 0;
      message.firstAt = timings.first_token_ms ?? undefined;
      message.endedAt = timings.total_ms;
      message.resumed = false;
      this.#update(message, true);
    } catch {
      // Then they are not shown.
    }
  }

  async stop() {
    const message = this.active;
    if (!message) return;
    if (!message.request) {
      message.state = "stopped";
      this.#update(message, true);
      return;
    }
    try {
      await this.api.cancel(message.request);
    } catch (error) {
      announce(describeError(error));
    }
  }

  #update(message, atOnce = false) {
    this.conversation.save(message, atOnce);
    this.#view(message)?.changed();
    this.#changed();
  }

  /** @type {Set<MessageView>} */
  #dirty = new Set();

  /** A view wants to be drawn in the next frame. */
  redraw(view) {
    this.#dirty.add(view);
    this.draw();
  }

  #changed() {
    this.draw();
  }

  #drawNow() {
    for (const view of this.#dirty) view.draw();
    this.#dirty.clear();
    const busy = Boolean(this.active);
    if (this.#composer.dataset.busy !== String(busy)) {
      this.#composer.dataset.busy = String(busy);
      this.#send.replaceChildren(icon(busy ? "stop" : "send"));
      this.#send.setAttribute("aria-label", busy ? "Stop" : "Send");
      this.#send.title = busy ? "Stop" : "Send";
    }
    byId("welcome").hidden = this.conversation.messages.length > 0;
    if (this.#stays) this.#scroller.scrollTop = this.#scroller.scrollHeight;
  }

  #nearEnd() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroller;
    return scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
  }

  #fitPrompt() {
    this.#prompt.style.height = "auto";
    this.#prompt.style.height = `${Math.min(this.#prompt.scrollHeight, innerHeight / 3)}px`;
  }

  /** A link that restores the settings. */
  link() {
    return shareLink("chat", { model: this.model.name, ...this.controls.values() });
  }
}

/** One message on the page. */
class MessageView {
  #shown = 0;
  #state = "";
  #markdown;

  /**
   * @param {import("./conversation.js").Message} message
   * @param {Chat} chat
   */
  constructor(message, chat) {
    this.message = message;
    this.chat = chat;
    /** @type {Retry|undefined} */
    this.retry = undefined;
    const mine = message.role === "user";
    this.body = h("div", { class: mine ? "said" : "said prose" });
    this.foot = h("div", { class: "foot" });
    this.figures = h("span", { class: "figures" });
    this.actions = h("span", { class: "actions" });
    const name = h("h2", { class: "visually-hidden", text: mine ? "You" : (message.model ?? "Answer") });
    this.root = h("li", { class: `message ${mine ? "mine" : "theirs"}` }, name, this.body, this.foot);
    this.foot.append(this.figures, this.actions);
    if (!mine) this.#markdown = new MarkdownView(this.body);
  }

  changed() {
    this.chat.redraw(this);
  }

  draw() {
    const { message } = this;
    if (message.text.length > this.#shown) {
      const news = message.text.slice(this.#shown);
      if (this.#markdown) this.#markdown.append(news);
      else this.body.append(news);
      this.#shown = message.text.length;
    }
    if (this.#state !== message.state + (this.retry?.automatic ?? "")) {
      this.#state = message.state + (this.retry?.automatic ?? "");
      this.root.dataset.state = message.state;
      this.actions.replaceChildren(...this.#buttons());
    }
    setText(this.figures, this.#describe());
  }

  #describe() {
    const { message } = this;
    switch (message.state) {
      case "submitting":
        return "Sending";
      case "queued":
        return message.place ? describePlace(message.place) : "In line";
      case "refused":
        return `${message.note} ${this.retry?.describe() ?? ""}`;
      case "running":
        return message.firstAt ? this.#speed(Date.now()) : "Reading";
      case "failed":
        return message.note ?? "";
      default:
        return message.role === "user" ? "" : [this.#ending(), this.#speed(message.endedAt)].filter(Boolean).join(" · ");
    }
  }

  #ending() {
    const { message } = this;
    if (message.state === "stopped") return message.note ?? "Stopped";
    return message.finish === "length" ? "Cut at the longest length" : "";
  }

  /** "34 tokens · 52 tokens/s · first after 120 ms" */
  #speed(until) {
    const { tokens, sentAt, firstAt, resumed } = this.message;
    const parts = [tokens ? `${tokens} token${tokens === 1 ? "" : "s"}` : ""];
    if (!resumed && firstAt !== undefined && sentAt !== undefined && until) {
      if (tokens > 1 && until > firstAt) parts.push(`${((tokens - 1) / ((until - firstAt) / 1000)).toFixed(1)} tokens/s`);
      parts.push(`first after ${duration(firstAt - sentAt)}`);
    }
    return parts.filter(Boolean).join(" · ");
  }

  #buttons() {
    const { message, chat } = this;
    if (message.state === "refused" && this.retry) return this.retry.buttons(() => chat.giveUp(message));
    if (ACTIVE.has(message.state)) return [];
    const copy = copyButton("Copy", () => message.text);
    if (message.role === "user") return [copy];
    return [copy, iconButton("again", "Answer again", () => chat.regenerate(message))];
  }
}
