/** Collects what arrives and lets a test wait for a fact instead of for time. */
export class Inbox {
  all = [];
  #waiting = new Set();
  #name;

  constructor(name = "inbox") {
    this.#name = name;
  }

  push(item) {
    this.all.push(item);
    for (const look of [...this.#waiting]) look(item, this.all.length - 1);
  }

  /** Forgets what came so far; whoever waits goes on with what they have found. */
  clear() {
    this.all = [];
  }

  /** The first item that `matches`, already here or still to come. */
  async first(matches, options = {}) {
    return (await this.some(1, matches, options))[0];
  }

  /** The first `count` items that match. Each item is looked at once, so that thousands cost no more than that. */
  some(count, matches = () => true, { within = 10_000, what = matches.toString() } = {}) {
    const found = this.all.filter(matches).slice(0, count);
    if (found.length === count) return Promise.resolve(found);
    return new Promise((resolve, reject) => {
      const finish = () => {
        clearTimeout(timer);
        this.#waiting.delete(look);
      };
      const look = (item, index) => {
        if (!matches(item, index)) return;
        found.push(item);
        if (found.length < count) return;
        finish();
        resolve(found);
      };
      const timer = setTimeout(() => {
        finish();
        const seen = JSON.stringify(this.all.slice(-20)).slice(0, 4_000);
        reject(new Error(`${this.#name}: ${found.length} of ${count} within ${within} ms (${what}); last of ${this.all.length}: ${seen}`));
      }, within);
      this.#waiting.add(look);
    });
  }

  /** The item at `index`, now or when it has come. */
  async at(index, { within = 10_000 } = {}) {
    if (this.all.length <= index) await this.first((_, at) => at === index, { within, what: `item ${index}` });
    return this.all[index];
  }
}
