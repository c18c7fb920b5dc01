#!/usr/bin/env python3
"""check.py URL SERVER_PID CHROMIUM: what headless Chromium sees of the echo server.

Serves page.html on loopback and opens it in the browser; the page runs the checks, posts a line for each, and
asks for the server to be stopped. Needs no more than the standard library."""

import http.server
import os
import pathlib
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.parse

URL, SERVER_PID, CHROMIUM = sys.argv[1], int(sys.argv[2]), sys.argv[3]
PAGE = pathlib.Path(__file__).with_name("page.html").read_bytes()
TIMEOUT_SECONDS = 180
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
]
events = queue.Queue()


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        found = urllib.parse.urlsplit(self.path).path == "/"
        self.answer(200 if found else 404, PAGE if found else b"")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if self.path == "/terminate":
            os.kill(SERVER_PID, signal.SIGTERM)
        else:
            events.put((self.path, body))
        self.answer(204, b"")

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def lines_of_the_page():
    reported = 0
    while True:
        path, body = events.get(timeout=TIMEOUT_SECONDS)
        if path == "/report":
            reported += 1
            yield body
        elif path == "/done":
            if reported != int(body):
                yield f"FAIL {body} checks, but {reported} lines"
            return


def main():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = f"http://127.0.0.1:{server.server_port}/?url={urllib.parse.quote(URL, safe='')}"
    failed = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        log = open(os.path.join(profile, "chromium.log"), "w+")
        browser = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}/data", page],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            for line in lines_of_the_page():
                failed += line.startswith("FAIL")
                print(line, flush=True)
        except queue.Empty:
            failed += 1
            log.seek(0)
            print(f"FAIL no word from the page for {TIMEOUT_SECONDS} s; the browser's last words:")
            print("".join(log.readlines()[-10:]))
        finally:
            # The browser is a family of processes in a group of its own.
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
    sys.exit(1 if failed else 0)


main()
