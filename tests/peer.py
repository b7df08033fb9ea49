"""A process at the other end of a link, for tests: obeys one command at a time."""

import os
import pickle
import signal
import socket
import subprocess
import sys

from fastjob._core.lending import Link
from fastjob._core.segments import Store


def send(channel, obj, fds=()):
    data = pickle.dumps(obj)
    socket.send_fds(channel, [len(data).to_bytes(8, "little")], list(fds))
    channel.sendall(data)


def receive(channel):
    head, fds, _, _ = socket.recv_fds(channel, 8, 200)
    if not head:
        raise EOFError
    size = int.from_bytes(head, "little")
    data = bytearray()
    while len(data) < size:
        data += channel.recv(size - len(data))
    return pickle.loads(data), fds


class Peer:
    """The test's side: starts the process, and talks to it."""

    def __init__(self, *, keep_fds=True):
        self.channel, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )
        self.link = Link(keep_fds=keep_fds)

    def ask(self, command, *args, blocks=()):
        """Run ``command`` there; return what it returned, and its tokens."""
        tokens = self.link.lend(list(blocks))
        send(self.channel, (command, tokens, args), self.link.take_fds())
        (answer, lent), fds = receive(self.channel)
        self.link.give_fds(fds)
        if isinstance(answer, BaseException):
            raise answer
        return answer, lent

    def __call__(self, command, *args, blocks=()):
        return self.ask(command, *args, blocks=blocks)[0]

    def fetch(self, nbytes, fill, mode="r+", keep=False):
        _, tokens = self.ask("give", nbytes, fill, keep)
        return self.link.open(tokens, mode)[0]

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self):
        self.channel.close()
        self.process.wait()
        self.link.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


class Commands:
    """What the process can be asked to do; each returns an answer and blocks."""

    def __init__(self, link):
        self.link = link
        self.store = Store(idle_seconds=0)
        self.views = {}
        self.blocks = {}
        self.children = []

    def keep(self, tokens, name, mode):
        self.views[name] = self.link.open(tokens, mode)
        return None, []

    def drop(self, tokens, name):
        del self.views[name]
        return None, []

    def discard(self, tokens):
        self.link.discard(tokens)
        return None, []

    def discard_these(self, tokens, others):
        self.link.discard(others)
        return None, []

    def give_kept(self, tokens, fill):
        return None, [self.blocks[fill]]

    def ignore(self, tokens):
        return None, []

    def read(self, tokens, name):
        return [bytes(view) for view in self.views[name]], []

    def ends(self, tokens, name):
        """First and last byte of each view, and whether all its bytes are equal."""
        answer = []
        for view in self.views[name]:
            data = bytes(view)
            answer.append((data[0], data[-1], data.count(data[:1]) == len(data)))
        return answer, []

    def write(self, tokens, name, offset, data):
        for view in self.views[name]:
            memoryview(view)[offset : offset + len(data)] = data
        return None, []

    def give(self, tokens, nbytes, fill, keep):
        block = self.store.put(bytes([fill]) * nbytes)
        if keep:
            self.blocks[fill] = block
        return None, [block]

    def spoil(self, tokens):
        """Overwrite all memory of the store that is free."""
        self.store.collect()
        sizes = [64 << 10, 128 << 10, 1 << 20, 4 << 20]
        blocks = [self.store.put(b"\xee" * size) for size in sizes for _ in range(20)]
        del blocks
        return None, []

    def counts(self, tokens):
        again = self.store.collect()
        return {
            "live": self.store.live_blocks,
            "live_bytes": self.store.live_bytes,
            "warm": self.store.warm_bytes,
            "outstanding": self.link.outstanding,
            "regions": self.store.region_count,
            "again": again,
        }, []

    def maps(self, tokens):
        with open("/proc/self/maps") as maps:
            return (len(maps.readlines()), len(os.listdir("/proc/self/fd"))), []

    def fork(self, tokens, daemon=False):
        """Fork a child that holds all views; it ends when told by a byte.

        As a daemon it closes all descriptors of its parent.
        """
        wait, wake = os.pipe()
        answer, done = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(wake)
            if daemon:
                low, high = sorted((wait, done))
                os.closerange(3, low)
                os.closerange(low + 1, high)
                os.closerange(high + 1, 1024)
            os.read(wait, 1)
            data = {
                name: [bytes(view)[:1] for view in kept]
                for name, kept in self.views.items()
            }
            os.write(done, pickle.dumps(data))
            self.views.clear()
            os._exit(0)
        os.close(wait)
        os.close(done)
        self.children.append((child, wake, answer))
        return child, []

    def rotate(self, tokens):
        """Let the oldest child be the last to end; how many there are."""
        self.children.append(self.children.pop(0))
        return len(self.children), []

    def end_child(self, tokens):
        child, wake, answer = self.children.pop(0)
        os.write(wake, b"x")
        data = os.read(answer, 1 << 16)
        os.waitpid(child, 0)
        os.close(wake)
        os.close(answer)
        return pickle.loads(data), []


def serve(channel):
    link = Link()
    commands = Commands(link)
    while True:
        try:
            (command, tokens, args), fds = receive(channel)
        except (EOFError, ConnectionResetError):
            return
        try:
            link.give_fds(fds)
            answer, blocks = getattr(commands, command)(tokens, *args)
        except Exception as error:
            answer, blocks = error, []
        lent = link.lend(blocks)
        del blocks
        send(channel, (answer, lent), link.take_fds())


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
