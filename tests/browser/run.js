// Runs the browser tests against the real program:
//
//     node run.js --binary ../../target/debug/girandole [--smoke] [--only NAME]
//
// Chromium is taken from CHROMIUM or /usr/bin/chromium.

import { parseArgs } from "node:util";
import { admin } from "./admin.test.js";
import { chat, oneConnection, refused, restart, slowStart } from "./chat.test.js";
import { launch, Service } from "./harness.js";
import { interruptions, reload } from "./interruptions.test.js";
import { keepsUp } from "./keeps_up.test.js";
import { markdown } from "./markdown.test.js";
import { expired, pictures } from "./pictures.test.js";

const SMOKE = { markdown, chat, reload };
const ALL = { ...SMOKE, slowStart, refused, oneConnection, pictures, expired, restart, admin, interruptions, keepsUp };

const { values } = parseArgs({
  options: { binary: { type: "string" }, smoke: { type: "boolean" }, only: { type: "string" } },
});
if (!values.binary) throw new Error("--binary is missing");

const chosen = Object.entries(values.smoke ? SMOKE : ALL).filter(([name]) => !values.only || name === values.only);
const browser = await launch();
const service = await new Service(values.binary).start();
let failed = 0;
for (const [name, test] of chosen) {
  const began = Date.now();
  try {
    const said = await test({ browser, service, address: process.env.PAGE ?? service.address, binary: values.binary, Service });
    console.log(`ok   ${name} (${((Date.now() - began) / 1000).toFixed(1)} s): ${said}`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL ${name}: ${error.stack}`);
  }
}
await browser.close();
await service.end();
process.exitCode = failed ? 1 : 0;
