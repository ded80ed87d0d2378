#!/usr/bin/env python3
"""Write the manual of the C functions as one HTML page, from the comments of the headers.

  make_reference.py [-o build/reference.html] HEADER...

The first comment of a header is its first page. A comment before a declaration or a definition documents it; one that
stands alone begins a section, and the definitions up to the next such comment belong to it. Needs Python 3.9, nothing
else. A link to something that is not there is an error.
"""

import argparse
import html
import re
import sys
from pathlib import Path

NAME = re.compile(r"\b(?:kigo|cuda|KIGO|CUDA)_\w+\b(?:\(\))?")
TYPE = re.compile(r"typedef (?:struct (\w+) \w+;|\w+ \(\*(\w+)\))")
FUNCTION = re.compile(r"^[\w\s*]*?\b(\w+)\s*\(([^()]*)\);$", re.DOTALL)


class Entry:
    """Something documented: a section, a type, a function, a macro, or the values of an enumeration."""

    def __init__(self, kind, name, comment, code=""):
        self.kind, self.name, self.comment, self.code = kind, name, comment, code
        self.members = []


def lines_of(comment):
    """The text of a C comment without its frame."""
    text = re.sub(r"^/\*\*?|\*/$", "", comment.strip())
    return [re.sub(r"^ \*? ?", "", " " + line.strip()) if line.strip() in ("", "*") else re.sub(r"^\s*\* ?", "", line)
            for line in text.strip("\n").rstrip().splitlines()]


def entries_of(text):
    """The first page of a header and its entries, in order."""
    tokens = re.findall(r"/\*\*.*?\*/|typedef enum \{.*?\} \w+;|#define \w+ [^\n]+|typedef struct \w+ \w+;"
                        r"|typedef \w+ \(\*\w+\)\([^()]*\);"
                        r"|(?:const )?\w+ \*?\w+\([^()]*\);", text, re.DOTALL)
    page, entries, section, comment = None, [], None, None
    if tokens and tokens[0].startswith("/**") and text.lstrip().startswith("/**"):
        page = lines_of(tokens.pop(0))
    for token in tokens:
        if token.startswith("/**"):
            if comment is not None:
                section = Entry("section", comment[0], comment[1:])
                entries.append(section)
            comment = lines_of(token)
            continue
        code = re.sub(r"[ \t]*\n\s*", " ", token) if token.startswith("const ") or "(" in token else token
        if token.startswith("#define"):
            name, value = token.split(None, 2)[1:]
            entry = Entry("macro", name, comment or [], value.strip("()") if value.startswith("(-") else value)
            if section is not None:
                section.members.append(entry)
            elif entries and entries[-1].kind == "macros" and comment is None:
                entries[-1].members.append(entry)
            else:
                entries.append(Entry("macros", name, comment or []))
                entries[-1].members.append(Entry("macro", name, [], entry.code))
        elif token.startswith("typedef enum"):
            name = token.rsplit("}", 1)[1].strip(" ;")
            section = None
            entries.append(Entry("enum", name, comment or []))
            for note, member, value in re.findall(r"/\*\* (.*?) \*/\s*(\w+) = (-?\d+)", token):
                entries[-1].members.append(Entry("macro", member, [note], value))
        else:
            section = None
            if match := TYPE.match(token):
                # An opaque type needs no code; what a host writes does.
                entries.append(Entry("type", match.group(1) or match.group(2), comment or [], code if match.group(2) else ""))
            elif FUNCTION.match(code):
                entries.append(Entry("function", FUNCTION.match(code).group(1), comment or [], code))
        comment = None
    if comment is not None:
        entries.append(Entry("section", comment[0], comment[1:]))
    return page, [entry for entry in entries if entry.comment or entry.members]


def slug(text):
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


class Page:
    """The page while it is written."""

    def __init__(self, names):
        self.names = names
        self.ids = set()
        self.links = set()
        self.parts = []
        self.nav = []

    def id(self, name):
        if name in self.ids:
            raise SystemExit(f"make_reference: two parts of the page are called {name}")
        self.ids.add(name)
        return name

    def inline(self, text):
        """Code, names with their links, and plain text."""
        out = []
        for index, part in enumerate(re.split(r"`([^`]+)`", text)):
            linked, at = [], 0
            for match in NAME.finditer(part):
                name = match.group().removesuffix("()")
                linked.append(html.escape(part[at:match.start()], quote=False))
                shown = html.escape(match.group())
                if name in self.names:
                    self.links.add(name)
                    shown = f'<a href="#{name}"><code>{shown}</code></a>'
                elif index % 2 == 0:
                    shown = f"<code>{shown}</code>"
                linked.append(shown)
                at = match.end()
            body = "".join(linked) + html.escape(part[at:], quote=False)
            out.append(f"<code>{body}</code>" if index % 2 else body)
        return "".join(out)

    def code(self, text):
        escaped = html.escape(text, quote=False)
        return f"<pre><code>{escaped}</code></pre>"

    def blocks(self, lines, prefix=None):
        """Headings, fenced code, lists, definitions and paragraphs. `prefix` makes headings parts of the page."""
        out, at = [], 0
        while at < len(lines):
            line = lines[at]
            if not line.strip():
                at += 1
            elif line.startswith("## "):
                name = self.id(f"{prefix}-{slug(line)}") if prefix else ""
                out.append(f'<h3 id="{name}">{self.inline(line[3:])}</h3>' if name else f"<h3>{self.inline(line[3:])}</h3>")
                if name:
                    self.nav.append((2, name, line[3:]))
                at += 1
            elif line.startswith("```"):
                end = next(i for i in range(at + 1, len(lines)) if lines[i].startswith("```"))
                out.append(self.code("\n".join(lines[at + 1:end])))
                at = end + 1
            elif re.match(r"\s*- ", line):
                items = []
                while at < len(lines) and (re.match(r"\s*- ", lines[at]) or lines[at].startswith("    ")):
                    text = lines[at].strip()
                    if text.startswith("- "):
                        items.append(text[2:])
                    else:
                        items[-1] += " " + text
                    at += 1
                out.append("<ul>" + "".join(f"<li>{self.item(item)}</li>" for item in items) + "</ul>")
            elif line.startswith("  "):
                at = self.definitions(lines, at, out)
            else:
                text = []
                while at < len(lines) and lines[at].strip() and not re.match(r"##|```|\s*- |  ", lines[at]):
                    text.append(lines[at].strip())
                    at += 1
                out.append(f"<p>{self.inline(' '.join(text))}</p>")
        return "".join(out)

    def item(self, text):
        """A list item; what stands before its first colon is what it is about."""
        head, colon, rest = text.partition(": ")
        return f"<b>{self.inline(head)}</b>: {self.inline(rest)}" if colon else self.inline(text)

    def definitions(self, lines, at, out):
        """Indented lines: a key in quotes or a paragraph begins an entry, a deeper line its description."""
        entries, fresh = [], True
        while at < len(lines) and (not lines[at].strip() or lines[at].startswith("  ")):
            line = lines[at]
            if not line.strip():
                fresh = True
            elif (fresh or line.startswith('  "')) and not line.startswith("   "):
                entries.append([line.strip(), ""])
                fresh = False
            elif line.startswith("   "):
                entries[-1][1] += " " + line.strip()
            else:
                entries[-1][0] += " " + line.strip()
            at += 1
        out.append("<dl>")
        for head, text in entries:
            term, _, rest = head.partition(": ")
            out.append(f"<dt><code>{html.escape(term, quote=False)}</code></dt><dd>")
            if text:
                out.append(f'<p class="range">{self.inline(rest)}</p><p>{self.inline(text.strip())}</p>')
            else:
                out.append(f"<p>{self.inline(rest)}</p>")
            out.append("</dd>")
        out.append("</dl>")
        return at

    def function(self, entry):
        """The description, the parameters and the results of a function."""
        parts, current = {"": []}, ""
        for line in entry.comment:
            match = re.match(r"@(param \w+|returns)\s+(.*)", line)
            if match:
                current, line = match.group(1), match.group(2)
                parts[current] = []
            elif current and not line.strip():
                current = ""
            parts[current].append(line if current == "" else re.sub(r"^\s+(?!- )(?=\S)", "    " if any(
                re.match(r"\s*- ", known) for known in parts[current]) else "", line))
        out = [self.code(signature(entry.code))]
        rest = parts.pop("")
        memory = rest.index("Memory:") if "Memory:" in rest else len(rest)
        out.append(self.blocks(rest[:memory]))
        parameters = [(key[6:], text) for key, text in parts.items() if key.startswith("param ")]
        if parameters:
            rows = "".join(f"<tr><td><code>{name}</code></td><td>{self.inline(' '.join(t.strip() for t in text))}</td></tr>"
                           for name, text in parameters)
            out.append(f"<table>{rows}</table>")
        if "returns" in parts:
            out.append(f'<div class="returns"><h4>Returns</h4>{self.blocks(parts["returns"])}</div>')
        if memory < len(rest):
            out.append(f'<div class="memory"><h4>Memory</h4>{self.blocks(rest[memory + 1:])}</div>')
        return "".join(out)

    def macro_rows(self, entry):
        rows = []
        for member in entry.members:
            text = self.inline(" ".join(line.strip() for line in member.comment))
            rows.append(f'<tr id="{self.id(member.name)}" data-name="{member.name}"><td><code>{member.name}</code></td>'
                        f"<td class=\"number\">{html.escape(member.code)}</td><td>{text}</td></tr>")
        return f"<table>{''.join(rows)}</table>"

    def entry(self, entry):
        if entry.kind == "section":
            name, title = self.id("section-" + slug(entry.name)), self.inline(entry.name)
        elif entry.kind == "macros":
            name, title = self.id("macros-" + slug(entry.name)), f"<code>{entry.name}</code>"
        else:
            name, title = self.id(entry.name), f"<code>{entry.name}</code>"
        if entry.kind == "function":
            body = self.function(entry)
        else:
            body = self.code(entry.code) if entry.code else ""
            body += self.blocks(entry.comment) + (self.macro_rows(entry) if entry.members else "")
        self.nav.append((2, name, entry.name))
        self.parts.append(f'<section id="{name}" data-name="{html.escape(entry.name)}" class="{entry.kind}">'
                          f"<h3>{title}</h3>{body}</section>")

    def header(self, name, text):
        page, entries = entries_of(text)
        self.nav.append((1, self.id(slug(name)), name))
        self.parts.append(f'<h2 id="{slug(name)}">{html.escape(name)}</h2>')
        if page:
            self.parts.append(f'<section class="page" data-name="{name}">{self.blocks(page, slug(name))}</section>')
        for entry in entries:
            self.entry(entry)

    def write(self, version):
        missing = self.links - self.ids
        if missing:
            raise SystemExit(f"make_reference: nothing is called {', '.join(sorted(missing))}")
        nav = "".join(f'<a class="level{level}" href="#{name}">{html.escape(title)}</a>' for level, name, title in self.nav)
        return TEMPLATE.replace("@VERSION@", version).replace("@NAV@", nav).replace("@BODY@", "\n".join(self.parts))


def signature(code):
    """A declaration with one parameter a line where it is long."""
    if len(code) <= 88:
        return code
    head, parameters = code[:-2].split("(", 1)
    return f"{head}(\n    " + ",\n    ".join(part.strip() for part in parameters.split(",")) + ");"


def names_of(text):
    """What the page will have an anchor for."""
    _, entries = entries_of(text)
    names = [entry.name for entry in entries if entry.kind in ("type", "function", "enum")]
    return names + [member.name for entry in entries for member in entry.members]


TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>kigo @VERSION@: reference</title>
<style>
:root { --ink: #1c1b1a; --soft: #6b6862; --paper: #fdfcfa; --tint: #f3f0ea; --line: #e2ddd3; --link: #8a3324; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e2da; --soft: #9b968c; --paper: #191817; --tint: #242220; --line: #383530; --link: #e79c83; }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1.5rem; }
body { margin: 0; display: grid; grid-template-columns: 18rem minmax(0, 1fr); color: var(--ink); background: var(--paper);
  font: 1rem/1.6 Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, serif; }
nav { position: sticky; top: 0; height: 100vh; overflow-y: auto; padding: 1.5rem 1rem 2rem 1.5rem;
  border-right: 1px solid var(--line); font: .85rem/1.45 ui-sans-serif, system-ui, sans-serif; }
nav a { display: block; padding: .12rem .4rem; color: inherit; text-decoration: none; border-radius: .25rem;
  overflow-wrap: anywhere; }
nav a:hover, nav a:focus-visible { background: var(--tint); }
nav a.level1 { margin-top: 1rem; font-weight: 600; }
nav input { width: 100%; padding: .4rem .6rem; color: inherit; background: var(--tint); font: inherit;
  border: 1px solid var(--line); border-radius: .35rem; }
main { max-width: 56rem; padding: 2rem 2.5rem 6rem; }
h1 { margin: 0 0 .3rem; font-size: 2rem; line-height: 1.2; }
h2 { margin: 3.5rem 0 1rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); font-size: 1.5rem; }
h3 { margin: 2.5rem 0 .6rem; font-size: 1.15rem; }
h3 code { font-size: 1em; font-weight: 600; }
h4 { margin: 1rem 0 .2rem; color: var(--soft); font: 600 .78rem/1.4 ui-sans-serif, system-ui, sans-serif;
  letter-spacing: .06em; text-transform: uppercase; }
p, ul, dl, table { margin: .6rem 0; }
ul { padding-left: 1.2rem; }
li { margin: .25rem 0; }
b { font-weight: 600; }
a { color: var(--link); text-underline-offset: .15em; text-decoration-thickness: .05em; }
code { font: .88em/1.5 ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, monospace; }
code code { font-size: 1em; }
pre code { font-size: .8rem; }
pre { margin: .8rem 0; padding: .8rem 1rem; overflow-x: auto; background: var(--tint); border-radius: .4rem; }
table { width: 100%; border-collapse: collapse; }
td { padding: .35rem .8rem .35rem 0; vertical-align: top; border-top: 1px solid var(--line); }
td:first-child { white-space: nowrap; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
dt { margin-top: .9rem; }
dd { margin: 0 0 0 1.5rem; }
dd p { margin: .1rem 0; }
.range, .memory { color: var(--soft); }
.soft { color: var(--soft); }
:target { outline: 2px solid var(--link); outline-offset: .4rem; border-radius: .2rem; }
[hidden] { display: none !important; }
@media (max-width: 60rem) {
  body { display: block; }
  nav { position: static; height: auto; max-height: 45vh; border-right: 0; border-bottom: 1px solid var(--line); }
  main { padding: 1.5rem 1.2rem 4rem; }
  td:first-child { white-space: normal; overflow-wrap: anywhere; }
}
@media print { nav { display: none; } body { display: block; } }
</style>
</head>
<body>
<nav aria-label="Contents">
<input id="find" type="search" placeholder="Find  ( / )" aria-label="Find a function, a key or a word" autocomplete="off">
@NAV@
</nav>
<main>
<h1>kigo @VERSION@</h1>
<p class="soft">Made from the headers of the library.</p>
@BODY@
<p id="nothing" class="soft" hidden>Nothing holds these words.</p>
</main>
<script>
const field = document.getElementById("find");
const sections = [...document.querySelectorAll("main section")];
const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
function find() {
  const words = field.value.toLowerCase().split(/\\s+/).filter(Boolean);
  const holds = (text) => words.every((word) => text.toLowerCase().includes(word));
  let shown = 0;
  for (const section of sections) {
    section.hidden = !holds(section.dataset.name + " " + section.textContent);
    shown += section.hidden ? 0 : 1;
    for (const row of section.querySelectorAll("tr[data-name]"))
      row.hidden = words.length > 0 && !holds(row.textContent) && !holds(section.dataset.name);
    const ids = [section, ...section.querySelectorAll("[id]")].map((part) => part.id);
    for (const id of ids) if (links.has(id)) links.get(id).hidden = section.hidden;
  }
  document.getElementById("nothing").hidden = shown > 0;
}
field.addEventListener("input", find);
addEventListener("hashchange", () => { if (field.value) { field.value = ""; find(); } });
addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== field) { event.preventDefault(); field.focus(); }
  if (event.key === "Escape") { field.value = ""; find(); field.blur(); }
});
</script>
</body>
</html>
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("headers", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("build/reference.html"))
    arguments = parser.parse_args()
    texts = {path.name: path.read_text() for path in arguments.headers}
    page = Page({name for text in texts.values() for name in names_of(text)})
    for name, text in texts.items():
        page.header(name, text)
    version = re.search(r'#define KIGO_VERSION_STRING "([^"]+)"', "".join(texts.values()))
    arguments.output.write_text(page.write(version.group(1) if version else ""))


if __name__ == "__main__":
    main()
