"""The names of the files that hold frames, from everything that decides their pixels. Pure but for
`stat`.

Two frames with one name must be the same bits. So a name has a hash of everything that decides
them: which pictures (the commit; of a directory, which has none, also size, time and inode of the
files that an episode lies in), what is made of them (camera, image size, what depths mean), and by
what (the decoder with its libraries, the processor). Whatever differs is another file, and what
nobody asks for any more is deleted in time.

A name begins with a rank, a hash of commit, camera and episode: it says which episodes are kept
where there is no room for all (`_reading/frame_cache/cache_directory`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from lerobot_grain._base.machine import processor
from lerobot_grain._format.features import Feature
from lerobot_grain._repository.repository import Repository
from lerobot_grain._storage.base import Storage
from lerobot_grain._storage.directory import DirectoryStorage
from lerobot_grain._video.decoder import decoder_version
from lerobot_grain._video.depth import depth_decoder_version
from lerobot_grain._video.images import image_decoder_version

# To be raised when this package gives other pixels for the same pictures, or lays files out in
# another way.
FORMAT = "1"
SUFFIX = ".frames"
_RANK_BYTES = 8
_DIGEST_BYTES = 16


class FrameKey:
    """Names the files of the frames of a camera.

    Args:
      repository: the dataset.
      feature: the camera.
      image_size: (height, width) that frames are resized to, or `None`.
    """

    def __init__(
        self, repository: Repository, feature: Feature, image_size: tuple[int, int] | None
    ) -> None:
        self._storage = repository.storage
        self._commit = repository.commit
        self._camera = feature.key
        episodes = repository.episodes
        spans = [episodes.data]
        if feature.dtype == "video":
            # Rows may be linked to frames by the timestamps in the data file.
            spans.append(episodes.videos[feature.key].files)
        self._spans = spans
        if feature.dtype != "video":
            decoder = image_decoder_version()
        elif feature.is_depth:
            decoder = depth_decoder_version()
        else:
            decoder = decoder_version()
        kind = (feature.dtype, feature.shape, feature.depth, feature.frame_dtype, image_size)
        self._kind = _hash(
            [FORMAT, self._commit, self._camera, repr(kind), decoder, processor()], _DIGEST_BYTES
        )

    def name(self, episode: int) -> str:
        """Returns the name of the file of an episode, by its position in the episode table."""
        rank = _hash([self._commit, self._camera, str(episode)], _RANK_BYTES)
        files = [spans.paths[spans.file_of_episode.item(episode)] for spans in self._spans]
        present = [_identity(self._storage, path) for path in files]
        return f"{rank}-{_hash([self._kind, str(episode), *present], _DIGEST_BYTES)}{SUFFIX}"


def _identity(storage: Storage, path: str) -> str:
    """Returns what tells the contents of a file from others that it had before, where no commit
    does.
    """
    if not isinstance(storage, DirectoryStorage) or storage.commit is not None:
        return ""
    try:
        status = os.stat(os.path.join(storage.root, path))
    except OSError:
        return "absent"
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"


def _hash(texts: Sequence[str], num_bytes: int) -> str:
    joined = "\0".join(texts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(joined, digest_size=num_bytes).hexdigest()
