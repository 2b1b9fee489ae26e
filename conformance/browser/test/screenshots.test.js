// The pictures of the documentation, taken from the page as it runs: light, dark and narrow.
import assert from "node:assert/strict";
import { mkdir, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { openBrowser, openPage } from "../support/browser.js";
import { DemoServer } from "../support/server.js";

// Without the variable the pictures go to a folder that is not kept: they differ at every run.
const here = dirname(fileURLToPath(import.meta.url));
const folder = process.env.TIDEWIRE_SCREENSHOTS ?? join(here, "../screenshots");
const PATIENCE = { timeout: 15_000 };

let server;
let browser;

before(async () => {
  server = await DemoServer.start();
  browser = await openBrowser({ viewport: { width: 1280, height: 960 } });
});

after(async () => {
  await browser?.close();
  await server?.stop();
});

test("two people at work, in light, dark and narrow", async () => {
  await mkdir(folder, { recursive: true });
  const windows = {};
  for (const [who, name] of [["ada", "Ada Lovelace"], ["grace", "Grace Hopper"]]) {
    const { page } = await openPage(browser.context, server.info.url);
    await page.waitForSelector('#connection[data-state="live"]', PATIENCE);
    await page.waitForSelector("#notes-loading", { state: "hidden", ...PATIENCE });
    await page.fill("#name-input", name);
    await page.click("#name-save");
    windows[who] = page;
  }
  const { ada: one, grace: two } = windows;
  await one.waitForSelector(".person-name:text-is('Grace Hopper')", PATIENCE);

  await one.click("#measure");
  await one.waitForFunction(() => document.getElementById("measure").textContent === "Measure 20 writes", null, { timeout: 60_000 });
  for (const [page, words] of [
    [one, "Buoy 7 reports 1.8 m swell"],
    [two, "Pilot boat ready at the pier"],
    [one, "Spring tide tonight, 02:14"],
    [two, "Ferry leaves on the ebb"],
  ]) {
    await page.fill("#note-input", words);
    await page.click("#note-add");
    await one.waitForSelector(`.note-body:text-is('${words}')`, PATIENCE);
  }
  await two.locator(".note", { hasText: "Pilot boat ready" }).locator(".note-done").check();
  for (const [page, words] of [[two, "Who takes the late watch?"], [one, "I do. Coffee is on."], [two, "See you at the lighthouse."]]) {
    await page.fill("#chat-input", words);
    await page.press("#chat-input", "Enter");
    await one.waitForSelector(`.message-words:text-is('${words}')`, PATIENCE);
  }
  // The sparkline of round trips fills by itself; a dozen readings are enough to see it.
  await one.waitForFunction(() => / (1[2-9]|[2-6]\d) readings$/.test(document.getElementById("latency-broadcast-note").textContent), null, { timeout: 40_000 });

  const box = await two.locator("#stage").boundingBox();
  await two.mouse.move(box.x + box.width * 0.25, box.y + box.height * 0.3);
  await two.mouse.move(box.x + box.width * 0.42, box.y + box.height * 0.4, { steps: 6 });
  await one.waitForSelector(".pointer", PATIENCE);
  await one.click(".brand");
  for (const [page, scheme, file] of [[one, "light", "demo.png"], [one, "dark", "demo-dark.png"], [two, "light", "demo-narrow.png"]]) {
    if (page === two) await two.setViewportSize({ width: 390, height: 844 });
    await page.emulateMedia({ colorScheme: scheme });
    await page.evaluate(() => scrollTo(0, 0));
    await atRest(page);
    await page.screenshot({ path: join(folder, file), fullPage: page === one });
    assert.ok((await stat(join(folder, file))).size > 20_000);
  }
});

/** Waits until every animation that ends has ended. */
async function atRest(page) {
  await page.evaluate(() =>
    Promise.all(
      document
        .getAnimations()
        .filter((animation) => animation.effect.getTiming().iterations !== Infinity)
        .map((animation) => animation.finished),
    ),
  );
}
