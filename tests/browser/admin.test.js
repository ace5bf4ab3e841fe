// The operator's page: nothing without its key, then models, plots, requests; cancel and drain.

import assert from "node:assert/strict";
import { ADMIN_KEY, Service, until } from "./harness.js";

export async function admin({ browser, binary }) {
  const service = await new Service(binary).start();
  const context = await browser.newContext({ viewport: { width: 1200, height: 900 } });
  const page = await context.newPage();
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  for (const key of ["", "a-wrong-key-0123456789"]) {
    const answer = await fetch(`${service.address}/api/v1/admin/overview`, { headers: { authorization: `Bearer ${key}` } });
    assert.equal(answer.status, 401);
  }
  const secret = "a secret that no operator reads";
  const body = { model: "chat", prompt: secret, max_tokens: 5000, detach: true };
  const { id } = await (await fetch(`${service.address}/api/v1/requests`, { method: "POST", body: JSON.stringify(body) })).json();
  await page.goto(`${service.address}/admin`);
  await page.fill("#key", "a-wrong-key-0123456789");
  await page.press("#key", "Enter");
  await page.waitForSelector("#key-dialog[open]");
  assert.equal(await page.locator(".model").count(), 0);
  await page.fill("#key", ADMIN_KEY);
  await page.press("#key", "Enter");
  await until("three models", async () => (await page.locator(".model").count()) === 3);
  await until("the request", async () => (await page.locator("#request-rows").textContent()).includes(id));
  await until("plots", async () => (await page.locator(".plot svg").first().getAttribute("aria-label")) !== null);
  assert.ok(!(await page.content()).includes(secret));
  await page.click(`[data-cancel="${id}"]`);
  await until("it is cancelled", async () => (await page.locator("#request-rows").textContent()).includes("Nothing waits"));
  const status = await (await fetch(`${service.address}/api/v1/requests/${id}`)).json();
  assert.equal(status.choices[0].finish_reason, "cancelled");

  const panel = page.locator(".model").first();
  await panel.getByText("Drain").click();
  await page.click("#confirm button[value='no']");
  assert.equal(await panel.locator(".badge").textContent(), "ready");
  await panel.getByText("Drain").click();
  await page.click("#confirm-yes");
  await until("drained", async () => (await panel.locator(".badge").textContent()) === "stopped");
  const after = await fetch(`${service.address}/api/v1/requests`, { method: "POST", body: JSON.stringify(body) });
  assert.equal(after.status, 503);
  assert.deepEqual(complaints, []);
  await context.close();
  await service.end();
  return "key asked for, plots shown, one cancelled, one model drained, no prompt shown";
}
