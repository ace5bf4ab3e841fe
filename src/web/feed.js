// One connection that follows all of the page's requests, whatever happens to it.
//
// The service keeps every request's events. The page keeps, for each, the number of the last one it has
// dealt with, and says so whenever it connects: after a reload, a cut, a sleep, or to add a request. So nothing
// is lost and nothing comes twice, and closing the connection at any moment does no harm.

import { Refusal } from "./api.js";

/** Requests that one connection follows; the service has a limit, and the others follow when some have ended. */
const MAX_FOLLOWED = 48;
/** The service says something every ten seconds; after this the connection is taken for dead. */
const SILENCE_MS = 25_000;
/** A connection that stood this long was a good one, whether or not there was anything to say. */
const GOOD_MS = 3_000;
const FIRST_RETRY_MS = 250;
const LAST_RETRY_MS = 8_000;

const TERMINAL = new Set(["finished", "failed", "gone"]);

/**
 * @callback Listener
 * @param {string} event the event's name
 * @param {object} data
 * @param {number} seq what to keep as the place to go on from
 */

export class Feed {
  #api;
  /** @type {Map<string, {after: number, listener: Listener}>} */
  #followed = new Map();
  /** @type {AbortController|null} */
  #connection = null;
  #scheduled = false;
  #wake = () => {};
  #lastHeard = 0;
  #failures = 0;

  /**
   * @param {import("./api.js").Api} api
   * @param {(state: "idle"|"connected"|"connecting"|"offline") => void} onState
   */
  constructor(api, onState) {
    this.#api = api;
    this.onState = onState;
    addEventListener("online", () => this.reconnect());
    addEventListener("offline", () => this.onState("offline"));
    // A tab that was asleep may hold a connection that died meanwhile.
    const awake = () => {
      if (!document.hidden && this.#connection && performance.now() - this.#lastHeard > SILENCE_MS / 2) this.reconnect();
    };
    document.addEventListener("visibilitychange", awake);
    addEventListener("pageshow", awake);
    setInterval(() => {
      if (this.#connection && performance.now() - this.#lastHeard > SILENCE_MS) this.reconnect();
    }, 5_000);
  }

  /**
   * Follows a request from behind event number `after` until its end.
   * @param {string} id
   * @param {number} after
   * @param {Listener} listener
   */
  follow(id, after, listener) {
    this.#followed.set(id, { after, listener });
    this.reconnect();
  }

  /** @param {string} id */
  unfollow(id) {
    this.#followed.delete(id);
  }

  /** Connects anew, at once. */
  reconnect() {
    this.#failures = 0;
    if (this.#scheduled) return;
    this.#scheduled = true;
    // Several requests that begin together make one new connection.
    queueMicrotask(() => {
      this.#scheduled = false;
      this.#connection?.abort();
      this.#wake();
      this.#connection = new AbortController();
      this.#run(this.#connection);
    });
  }

  /** @param {AbortController} connection */
  async #run(connection) {
    const { signal } = connection;
    while (this.#followed.size && !signal.aborted) {
      this.onState(navigator.onLine ? "connecting" : "offline");
      try {
        await this.#connect(signal);
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof Refusal && error.status === 401) break;
        this.#failures += 1;
      }
      if (signal.aborted || !this.#followed.size) break;
      // A stream that ends with requests left goes on at once; one that brought nothing, after a while.
      if (this.#failures) await this.#pause();
    }
    if (this.#connection === connection) {
      this.#connection = null;
      this.onState("idle");
    }
  }

  async #connect(signal) {
    const followed = [...this.#followed].slice(0, MAX_FOLLOWED);
    const cursors = followed.map(([id, { after }]) => `${id}:${after}`);
    this.#lastHeard = performance.now();
    const response = await this.#api.call("GET", `/api/v1/events?requests=${cursors.join(",")}`, { signal });
    if (response.status === 204) {
      // All of them had ended before, and the page had seen it.
      for (const [id] of followed) this.#end(id, "gone", { status: 204 });
      return;
    }
    this.onState("connected");
    const began = performance.now();
    let said = false;
    let rest = "";
    const text = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { value, done } = await text.read();
      if (done || signal.aborted) break;
      this.#lastHeard = performance.now();
      const blocks = (rest + value).split("\n\n");
      // What follows the last blank line is no whole frame yet, and is dropped if the connection ends here.
      rest = blocks.pop();
      for (const block of blocks) said = this.#hear(block) || said;
    }
    this.#failures = said || performance.now() - began > GOOD_MS ? 0 : this.#failures + 1;
  }

  /** Reads one frame; tells whether it was one. */
  #hear(block) {
    let event = "";
    let data = "";
    for (const line of block.split("\n")) {
      if (line.startsWith("event: ")) event = line.slice(7);
      else if (line.startsWith("data: ")) data = line.slice(6);
    }
    if (!data) return false;
    const frame = JSON.parse(data);
    const followed = this.#followed.get(frame.request);
    if (followed) {
      followed.after = frame.seq;
      if (TERMINAL.has(event)) this.#followed.delete(frame.request);
      followed.listener(event, frame.data, frame.seq);
    }
    return true;
  }

  #end(id, event, data) {
    const followed = this.#followed.get(id);
    this.#followed.delete(id);
    followed?.listener(event, data, followed.after);
  }

  #pause() {
    const most = Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** (this.#failures - 1));
    const delay = most * (0.5 + Math.random() / 2);
    return new Promise((resolve) => {
      this.#wake = resolve;
      setTimeout(resolve, delay);
    });
  }
}
