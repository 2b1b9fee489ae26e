/** Collects what arrives and lets a test wait for a fact instead of for time. */
export class Inbox {
  all = [];
  #waiting = [];
  #name;

  constructor(name = "inbox") {
    this.#name = name;
  }

  push(item) {
    this.all.push(item);
    for (const waiter of [...this.#waiting]) waiter.look();
  }

  clear() {
    this.all = [];
  }

  /** The first item that `matches`, already here or still to come. */
  async first(matches, { within = 10_000, what = matches.toString() } = {}) {
    return (await this.some(1, matches, { within, what }))[0];
  }

  /** The first `count` items that match. */
  some(count, matches = () => true, { within = 10_000, what = matches.toString() } = {}) {
    return new Promise((resolve, reject) => {
      const finish = () => {
        clearTimeout(waiter.timer);
        this.#waiting = this.#waiting.filter((other) => other !== waiter);
      };
      const waiter = {
        look: () => {
          const found = this.all.filter(matches);
          if (found.length < count) return;
          finish();
          resolve(found.slice(0, count));
        },
        timer: setTimeout(() => {
          finish();
          const seen = JSON.stringify(this.all.slice(-20), (_, value) => (typeof value === "bigint" ? `${value}n` : value));
          const found = this.all.filter(matches).length;
          reject(new Error(`${this.#name}: ${found} of ${count} within ${within} ms (${what}); last of ${this.all.length}: ${seen}`));
        }, within),
      };
      this.#waiting.push(waiter);
      waiter.look();
    });
  }
}
