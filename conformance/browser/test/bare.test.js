// A server without demonstration: the page asks for a key, keeps it in memory, and shows the other panels.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { openBrowser, openPage } from "../support/browser.js";
import { DemoServer } from "../support/server.js";

const PATIENCE = { timeout: 15_000 };
let server;
let browser;

before(async () => {
  server = await DemoServer.start([]);
  browser = await openBrowser();
});

after(async () => {
  await browser?.close();
  await server?.stop();
});

test("two windows with a typed key meet in a channel, and the key is nowhere but in memory", async () => {
  const windows = [];
  for (const name of ["Ada", "Ben"]) {
    const opened = await openPage(browser.context, server.info.url);
    const { page } = opened;
    await page.waitForSelector("#connect", PATIENCE);
    assert.equal(await page.isVisible("#panel-notes"), false);
    await page.fill("#connect-key", server.info.anon_key);
    await page.fill("#connect-topic", "bare-room");
    await page.click("#connect-form button");
    await page.waitForSelector('#connection[data-state="live"]', PATIENCE);
    await page.fill("#name-input", name);
    await page.click("#name-save");
    windows.push(opened);
  }
  const [ada, ben] = windows;
  await ada.page.waitForSelector(".person-name:text-is('Ben')", PATIENCE);
  await ben.page.waitForSelector(".person-name:text-is('Ada')", PATIENCE);
  await ada.page.fill("#chat-input", "hello");
  await ada.page.press("#chat-input", "Enter");
  await ben.page.waitForSelector(".message-words:text-is('hello')", PATIENCE);
  await ada.page.waitForFunction(() => document.getElementById("latency-broadcast").dataset.ms !== "", null, PATIENCE);
  for (const { page, complaints } of windows) {
    assert.deepEqual(complaints, []);
    assert.equal(await page.inputValue("#connect-key"), "");
    assert.ok(!page.url().includes(server.info.anon_key));
    const stored = await page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie, document.documentElement.outerHTML]));
    assert.ok(!stored.includes(server.info.anon_key));
  }
});
