"""Keeping signed links out of the logs of other libraries."""

from __future__ import annotations

import logging

from lerobot_grain._storage.http.responses import redact


class _WithoutQueries(logging.Filter):
    """Takes signatures out of logs: other libraries log URLs, httpcore2 also headers with URLs in
    them.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = redact(record.getMessage())
        record.args = ()
        return True


_WITHOUT_QUERIES = _WithoutQueries()
# By name, because a filter does not see what comes from the loggers below its own.
_LOGGERS = (
    "httpx2",
    *(f"httpcore2.{part}" for part in ("connection", "http11", "http2", "proxy", "socks")),
    *(f"huggingface_hub.{part}" for part in ("utils._http", "file_download")),
)


def keep_queries_out_of_logs() -> None:
    """Filters the loggers of the libraries that log URLs."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_WITHOUT_QUERIES)  # adding it twice does nothing
