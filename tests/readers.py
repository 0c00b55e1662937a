"""Standard streams whose reader has gone."""

import contextlib
import os


@contextlib.contextmanager
def nobody_reads():
    """Standard output and error are pipes without a reader; at the end they are closed as an interpreter does."""
    streams = []
    for _ in range(2):
        reader, writer = os.pipe()
        os.close(reader)
        streams.append(os.fdopen(writer, "w"))
    output, error = streams
    with output, error, contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        yield
