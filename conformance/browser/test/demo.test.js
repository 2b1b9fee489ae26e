// The live page in two windows: rows, people, broadcasts, latency, and nothing that a browser complains about.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { openBrowser, openPage } from "../support/browser.js";
import { DemoServer } from "../support/server.js";

const PATIENCE = { timeout: 15_000 };

let server;
let browser;
let one;
let two;

before(async () => {
  server = await DemoServer.start();
  browser = await openBrowser();
  one = await openPage(browser.context, server.info.url);
  two = await openPage(browser.context, server.info.url);
  for (const { page } of [one, two]) await live(page);
});

after(async () => {
  await browser?.close();
  await server?.stop();
});

async function live(page) {
  await page.waitForSelector('#connection[data-state="live"]', PATIENCE);
  await page.waitForSelector("#notes-loading", { state: "hidden", ...PATIENCE });
}

const row = (page, words) => page.locator(".note", { has: page.locator(".note-body", { hasText: words }) });

async function write(page, words) {
  await page.fill("#note-input", words);
  await page.click("#note-add");
}

describe("two windows", () => {
  test("the page comes with a strict policy and loads nothing from elsewhere", async () => {
    const headers = one.response.headers();
    const policy = headers["content-security-policy"] ?? "";
    assert.match(policy, /default-src 'none'/);
    assert.match(policy, /script-src 'self'/);
    assert.ok(!policy.includes("unsafe"), policy);
    for (const url of one.requests) assert.ok(url.startsWith(server.info.url), url);
    assert.equal(new URL(one.page.url()).search, "", "no token in the address");
    const stored = await one.page.evaluate(() => [localStorage.length, sessionStorage.length, document.cookie]);
    assert.deepEqual(stored, [0, 0, ""]);
  });

  test("a row written here appears there, is changed there, and its deletion comes back", async () => {
    await write(one.page, "High water at nine");
    await row(two.page, "High water at nine").waitFor(PATIENCE);
    await row(one.page, "High water at nine").waitFor(PATIENCE);

    await row(two.page, "High water at nine").locator(".note-done").check();
    await one.page.waitForSelector(".note.is-done .note-body:text-is('High water at nine')", PATIENCE);

    const mine = row(one.page, "High water at nine");
    await mine.hover();
    await mine.locator(".note-edit").click();
    await one.page.fill(".note-field", "High water at ten");
    await one.page.press(".note-field", "Enter");
    await row(two.page, "High water at ten").waitFor(PATIENCE);
    assert.equal(await one.page.locator(".note-field").count(), 0, "Enter ends the editing");

    const theirs = row(two.page, "High water at ten");
    await theirs.hover();
    await theirs.locator(".note-delete").click();
    await row(one.page, "High water at ten").waitFor({ state: "detached", ...PATIENCE });
  });

  test("a window opened later has the rows that were there, and the next one", async () => {
    await write(one.page, "Written before");
    await row(two.page, "Written before").waitFor(PATIENCE);
    const late = await openPage(browser.context, server.info.url);
    await live(late.page);
    await row(late.page, "Written before").waitFor(PATIENCE);
    await write(one.page, "Written after");
    await row(late.page, "Written after").waitFor(PATIENCE);
    await late.page.close();
    await one.page.waitForFunction(() => document.querySelectorAll(".person").length === 2, null, PATIENCE);
    assert.deepEqual(late.complaints, []);
  });

  test("each sees the other online, a rename travels, and a closed window leaves", async () => {
    for (const { page } of [one, two]) await page.waitForFunction(() => document.querySelectorAll(".person").length === 2, null, PATIENCE);
    await one.page.fill("#name-input", "Ada Lovelace");
    await one.page.click("#name-save");
    await two.page.waitForSelector(".person-name:text-is('Ada Lovelace')", PATIENCE);
    await two.page.fill("#name-input", "Grace Hopper");
    await two.page.press("#name-input", "Enter");
    await one.page.waitForSelector(".person-name:text-is('Grace Hopper')", PATIENCE);
    assert.equal(await one.page.locator(".person.is-me .person-name").textContent(), "Ada Lovelace");
  });

  test("pointers, pings, reactions and words reach the other window", async () => {
    const box = await one.page.locator("#stage").boundingBox();
    await one.page.mouse.move(box.x + box.width * 0.3, box.y + box.height * 0.4);
    await one.page.mouse.move(box.x + box.width * 0.5, box.y + box.height * 0.5, { steps: 5 });
    await two.page.waitForSelector(".pointer-name:text-is('Ada Lovelace')", PATIENCE);
    const pinged = two.page.waitForSelector(".ping", { state: "attached", ...PATIENCE });
    await one.page.mouse.down();
    await one.page.mouse.up();
    await pinged;
    const floated = two.page.waitForSelector(".floating", { state: "attached", ...PATIENCE });
    await one.page.click(".reaction >> nth=0");
    await floated;
    await one.page.fill("#chat-input", "The tide is turning");
    await one.page.press("#chat-input", "Enter");
    await two.page.waitForSelector(".message-words:text-is('The tide is turning')", PATIENCE);
    await one.page.waitForSelector(".message.is-me .message-words:text-is('The tide is turning')", PATIENCE);
  });

  test("latency is measured and shown", async () => {
    for (const name of ["write", "broadcast"]) {
      await one.page.waitForFunction((id) => document.getElementById(id).dataset.ms !== "", `latency-${name}`, PATIENCE);
      const ms = Number(await one.page.getAttribute(`#latency-${name}`, "data-ms"));
      assert.ok(ms > 0 && ms < 5_000, `${name}: ${ms} ms`);
      assert.match(await one.page.textContent(`#latency-${name}`), /^\d+(\.\d)?$/);
      assert.match(await one.page.getAttribute(`#spark-${name} .spark-line`, "d"), /^M/);
    }
    await one.page.click("#measure");
    await one.page.waitForFunction(() => document.getElementById("measure").textContent === "Measure 20 writes", null, { timeout: 60_000 });
    assert.match(await one.page.textContent("#latency-write-note"), / (2\d|[3-6]\d) readings$/);
    await row(two.page, "of 20").waitFor({ state: "detached", ...PATIENCE });
  });

  test("what others write stays text", async () => {
    const attacks = ["<img src=x onerror=alert(1)>", "<script>alert(2)</script>", '"><svg onload=alert(3)>', "javascript:alert(4)"];
    for (const attack of attacks) {
      await write(one.page, attack);
      await two.page.waitForFunction((words) => [...document.querySelectorAll(".note-body")].some((body) => body.textContent === words), attack, PATIENCE);
    }
    await one.page.fill("#name-input", "<b onclick=alert(5)>Eve</b>");
    await one.page.click("#name-save");
    await two.page.waitForFunction(() => [...document.querySelectorAll(".person-name")].some((name) => name.textContent.startsWith("<b onclick")), null, PATIENCE);
    await one.page.fill("#chat-input", "<iframe src=javascript:alert(6)></iframe>");
    await one.page.click("#chat-send");
    await two.page.waitForFunction(() => [...document.querySelectorAll(".message-words")].some((words) => words.textContent.startsWith("<iframe")), null, PATIENCE);
    for (const { page } of [one, two]) {
      const made = await page.evaluate(() => document.querySelectorAll("#panels img, #panels script, #panels iframe, #panels b, .note-body *, .person-name *, .message-words *, .frame-text *, .frame-raw *, [onclick], [onerror], [onload]").length);
      assert.equal(made, 0);
    }
    for (const attack of attacks) {
      const mine = one.page.locator(".note", { has: one.page.locator(".note-body", { hasText: attack }) });
      await mine.first().hover();
      await mine.first().locator(".note-delete").click();
      await mine.waitFor({ state: "detached", ...PATIENCE });
    }
    await one.page.fill("#name-input", "Ada Lovelace");
    await one.page.click("#name-save");
    await two.page.waitForSelector(".person-name:text-is('Ada Lovelace')", PATIENCE);
  });

  test("the event log shows frames as text", async () => {
    await one.page.waitForFunction(() => [...document.querySelectorAll(".frame-label")].some((label) => label.textContent === "postgres_changes"), null, PATIENCE);
    await one.page.locator(".frame summary").first().click();
    assert.ok((await one.page.locator(".frame details[open] .frame-raw").textContent()).length > 10);
    await one.page.locator(".frame summary").first().click();
    assert.ok(!(await one.page.textContent("#wire")).includes(server.info.anon_key), "no key in the log");
    await one.page.click("#wire-clear");
    assert.equal(await one.page.locator(".frame").count(), 0);
  });

  test("keyboard alone writes, ticks and deletes a row", async () => {
    await one.page.focus("#note-input");
    await one.page.keyboard.type("By keyboard");
    await one.page.keyboard.press("Enter");
    await row(one.page, "By keyboard").waitFor(PATIENCE);
    await row(one.page, "By keyboard").locator(".note-done").focus();
    await one.page.keyboard.press("Space");
    await two.page.waitForSelector(".note.is-done .note-body:text-is('By keyboard')", PATIENCE);
    await one.page.keyboard.press("Tab");
    await one.page.keyboard.press("Tab");
    await one.page.keyboard.press("Enter");
    await row(two.page, "By keyboard").waitFor({ state: "detached", ...PATIENCE });
  });

  test("a narrow window does not scroll sideways", async () => {
    for (const width of [360, 768, 1280]) {
      await two.page.setViewportSize({ width, height: 900 });
      const overflow = await two.page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(overflow <= 0, `${overflow} px too wide at ${width}`);
    }
    await two.page.setViewportSize({ width: 1280, height: 960 });
  });

  test("no window complained about anything", () => {
    assert.deepEqual(one.complaints, []);
    assert.deepEqual(two.complaints, []);
  });

  test("after a restart of the server both windows come back and hear each other", async () => {
    await server.end("SIGKILL");
    await one.page.waitForSelector('#connection[data-state="waiting"], #connection[data-state="connecting"]', PATIENCE);
    await server.run();
    for (const { page } of [one, two]) {
      await page.waitForSelector('#connection[data-state="live"]', { timeout: 30_000 });
      await live(page);
    }
    await write(one.page, "Back again");
    await row(two.page, "Back again").waitFor(PATIENCE);
    for (const { page } of [one, two]) await page.waitForFunction(() => document.querySelectorAll(".person").length === 2, null, PATIENCE);
    assert.equal(await two.page.locator(".note-body", { hasText: "Back again" }).count(), 1);
  });
});
