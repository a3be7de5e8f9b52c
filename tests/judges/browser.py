"""Drives the page of people.py in Chromium, as a person at a keyboard would.

  python -m tests.judges.browser URL PICTURE.png NAME KEYS

KEYS are pressed one after another, X loads the page again. Prints the page's
text at the end.
"""

import os
import sys
import time

os.environ.setdefault('QT_QPA_PLATFORM', 'offscreen')
os.environ.setdefault(
  'QTWEBENGINE_CHROMIUM_FLAGS', '--no-sandbox --disable-gpu'
)

from PySide6 import QtCore, QtTest, QtWebEngineWidgets, QtWidgets


class Browser:
  """A window without a screen."""

  def __init__(self, width: int, height: int):
    self.app = QtWidgets.QApplication.instance() or QtWidgets.QApplication([])
    self.view = QtWebEngineWidgets.QWebEngineView()
    self.view.resize(width, height)
    self.view.show()

  def wait(self, what: str, seconds: float = 60) -> None:
    """Until a JavaScript expression holds."""
    deadline = time.monotonic() + seconds
    while self.run(what) is not True:
      if time.monotonic() > deadline:
        raise TimeoutError(what)
      QtTest.QTest.qWait(50)

  def run(self, script: str):
    """The value of JavaScript."""
    found = []
    self.view.page().runJavaScript(script, 0, found.append)
    deadline = time.monotonic() + 60
    while not found and time.monotonic() < deadline:
      QtTest.QTest.qWait(10)
    return found[0] if found else None

  def open(self, url: str) -> None:
    self.view.load(QtCore.QUrl(url))

  def type(self, text: str) -> None:
    target = self.view.focusProxy() or self.view
    QtTest.QTest.keyClicks(target, text)

  def enter(self) -> None:
    target = self.view.focusProxy() or self.view
    QtTest.QTest.keyClick(target, QtCore.Qt.Key.Key_Return)

  def picture(self, path: str) -> None:
    QtTest.QTest.qWait(500)
    self.view.grab().save(path)


def main(url: str, picture: str, name: str, keys: str) -> None:
  browser = Browser(1000, 700)
  browser.open(url)
  browser.wait("!document.getElementById('enter').hidden")
  browser.run("document.getElementById('name').focus()")
  browser.type(name)
  browser.enter()
  done = 0
  counted = "document.getElementById('count').textContent.startsWith('{} of')"
  browser.wait(counted.format(0))
  for key in keys:
    if key == 'X':
      browser.view.reload()
      QtTest.QTest.qWait(1000)
    else:
      browser.type(key)
      done += 1
    browser.wait(counted.format(done))
  browser.picture(picture)
  print(browser.run('document.body.innerText'))


if __name__ == '__main__':
  main(*sys.argv[1:])
