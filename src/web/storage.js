// What the page keeps in the browser: small things as JSON, pictures as blobs.

const PREFIX = "girandole.";

/**
 * Reads what was written under a name; `fallback` if there is nothing, or nothing that can be read.
 * @param {string} name
 */
export function read(name, fallback = null) {
  try {
    const text = localStorage.getItem(PREFIX + name);
    return text === null ? fallback : JSON.parse(text);
  } catch {
    return fallback;
  }
}

/**
 * Writes, and tells whether there was room.
 * @param {string} name
 */
export function write(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** @param {string} name */
export function remove(name) {
  try {
    localStorage.removeItem(PREFIX + name);
  } catch {
    // Nothing was kept.
  }
}

/** Values of this tab alone; they survive a reload. */
export const tab = {
  read(name) {
    try {
      return sessionStorage.getItem(PREFIX + name);
    } catch {
      return null;
    }
  },
  write(name, text) {
    try {
      if (text) sessionStorage.setItem(PREFIX + name, text);
      else sessionStorage.removeItem(PREFIX + name);
    } catch {
      // Kept for as long as the page is open.
    }
  },
};

/**
 * Writes things now and then, not on every change, and all that is left when the page goes.
 */
export class Saver {
  static #INTERVAL_MS = 500;
  /** @type {Map<string, () => unknown>} */
  #due = new Map();
  #timer = 0;

  constructor() {
    addEventListener("pagehide", () => this.flush());
    document.addEventListener("visibilitychange", () => this.flush());
  }

  /**
   * @param {string} name
   * @param {() => unknown} value
   */
  later(name, value) {
    this.#due.set(name, value);
    this.#timer ||= setTimeout(() => this.flush(), Saver.#INTERVAL_MS);
  }

  forget(name) {
    this.#due.delete(name);
    remove(name);
  }

  flush() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    for (const [name, value] of this.#due) write(name, value());
    this.#due.clear();
  }
}

/** How many pictures are kept. The oldest go when there are more. */
const MAX_PICTURES = 60;
const STORE = "pictures";

/** @type {Promise<IDBDatabase>|undefined} */
let opened;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("girandole", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function inStore(mode, work) {
  const store = (await database()).transaction(STORE, mode).objectStore(STORE);
  return new Promise((resolve, reject) => {
    const request = work(store);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Pictures as files, so that the gallery outlives the server's memory. Without room for them it does not. */
export const pictures = {
  /** @returns {Promise<Blob|undefined>} */
  async get(name) {
    try {
      return (await inStore("readonly", (store) => store.get(name)))?.blob;
    } catch {
      return undefined;
    }
  },
  async put(name, blob) {
    try {
      await inStore("readwrite", (store) => store.put({ blob }, name));
      // Names begin with the request's id, and ids sort by time.
      const names = await inStore("readonly", (store) => store.getAllKeys());
      for (const old of names.slice(0, Math.max(0, names.length - MAX_PICTURES))) await this.remove(old);
    } catch {
      // The picture can be had from the server for some minutes more.
    }
  },
  async remove(name) {
    try {
      await inStore("readwrite", (store) => store.delete(name));
    } catch {
      // It was not there.
    }
  },
};
