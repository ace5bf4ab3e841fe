// A conversation as it is kept in the browser: a list of messages, each under a name of its own, so that a
// growing answer does not mean writing the others again.

import { randomId } from "./dom.js";
import { read, remove, Saver, tab, write } from "./storage.js";

/**
 * One message.
 * @typedef {object} Message
 * @property {string} id
 * @property {"user"|"assistant"} role
 * @property {string} text what has come so far
 * @property {"done"|"submitting"|"refused"|"queued"|"running"|"stopped"|"failed"} state
 * @property {string} [request] the service's id for it
 * @property {number} [after] its last event that `text` holds
 * @property {string} [idempotencyKey]
 * @property {object} [body] what was or is to be submitted
 * @property {string} [model]
 * @property {number} [tokens]
 * @property {number} [sentAt]
 * @property {number} [firstAt]
 * @property {number} [endedAt]
 * @property {boolean} [resumed] the times measured here are not the whole truth
 * @property {import("./patience.js").Place|null} [place]
 * @property {string} [note] why it ended otherwise than meant
 * @property {string} [finish] the service's finish reason
 */

/** Conversations kept; the oldest go. */
const MAX_CONVERSATIONS = 20;
const INDEX = "conversations";

export class Conversation {
  #saver = new Saver();
  /** @type {Message[]} */
  messages = [];

  constructor(id) {
    this.id = id;
  }

  /** This tab's conversation; of a new tab, the latest that no other tab shows, else a new one. */
  static async open() {
    const mine = tab.read("conversation");
    const known = read(INDEX, []);
    if (mine) return Conversation.#load(mine);
    const latest = known.at(-1);
    if (latest && (await isFree(latest))) return Conversation.#load(latest);
    return Conversation.start();
  }

  static #load(id) {
    const conversation = new Conversation(id);
    const ids = read(`conversation.${id}`, []);
    conversation.messages = ids.map((message) => read(`message.${message}`)).filter(Boolean);
    conversation.#claim();
    return conversation;
  }

  /** An empty one. */
  static start() {
    const conversation = new Conversation(randomId());
    conversation.#claim();
    return conversation;
  }

  #claim() {
    tab.write("conversation", this.id);
    hold(this.id);
  }

  /**
   * Adds a message at the end.
   * @param {Omit<Message, "id">} message
   * @returns {Message}
   */
  add(message) {
    const added = { id: randomId(), ...message };
    this.messages.push(added);
    this.#saveNow(added);
    this.#saveList();
    return added;
  }

  /** Takes the messages from this one on away. */
  cutFrom(message) {
    const at = this.messages.indexOf(message);
    for (const gone of this.messages.splice(at)) this.#saver.forget(`message.${gone.id}`);
    this.#saveList();
  }

  /**
   * Writes a message: soon, or at once where its state has changed, so that a reload never asks again for what
   * was asked for already.
   */
  save(message, atOnce = false) {
    if (atOnce) this.#saveNow(message);
    else this.#saver.later(`message.${message.id}`, () => message);
  }

  #saveNow(message) {
    if (!write(`message.${message.id}`, message)) this.#makeRoom();
  }

  #saveList() {
    write(`conversation.${this.id}`, this.messages.map(({ id }) => id));
    const index = read(INDEX, []).filter((id) => id !== this.id);
    index.push(this.id);
    while (index.length > MAX_CONVERSATIONS) forget(index.shift());
    write(INDEX, index);
  }

  /** The browser's storage is full: the older half of the other conversations goes. */
  #makeRoom() {
    const index = read(INDEX, []).filter((id) => id !== this.id);
    for (const id of index.splice(0, Math.ceil(index.length / 2))) forget(id);
    write(INDEX, [...index, this.id]);
  }
}

function forget(conversation) {
  for (const message of read(`conversation.${conversation}`, [])) remove(`message.${message}`);
  remove(`conversation.${conversation}`);
}

const lockName = (id) => `girandole.conversation.${id}`;

/** Says to other tabs that this one shows the conversation, for as long as it is open. */
function hold(id) {
  navigator.locks?.request(lockName(id), { ifAvailable: true }, () => new Promise(() => {}));
}

async function isFree(id) {
  if (!navigator.locks) return true;
  return navigator.locks.request(lockName(id), { ifAvailable: true }, (lock) => lock !== null);
}
