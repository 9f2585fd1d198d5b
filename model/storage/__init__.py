"""Local and remote paths: reading, writing, searching, and files that appear whole or not at all.

May import: model.errors.
"""

from model.storage.filesystems import absolute as absolute
from model.storage.filesystems import copy_tree as copy_tree
from model.storage.filesystems import exists as exists
from model.storage.filesystems import is_directory as is_directory
from model.storage.filesystems import is_refused as is_refused
from model.storage.filesystems import is_remote as is_remote
from model.storage.filesystems import join as join
from model.storage.filesystems import list_directories as list_directories
from model.storage.filesystems import list_names as list_names
from model.storage.filesystems import make_directory as make_directory
from model.storage.filesystems import read_bytes as read_bytes
from model.storage.filesystems import remove_file as remove_file
from model.storage.filesystems import remove_tree as remove_tree
from model.storage.filesystems import resolve as resolve
from model.storage.filesystems import stem as stem
from model.storage.filesystems import why as why
from model.storage.filesystems import write_bytes as write_bytes
from model.storage.lakehouse import pinned as pinned
from model.storage.lakehouse import snapshot_of as snapshot_of
from model.storage.lakehouse import without_version as without_version
from model.storage.search import find_files as find_files
from model.storage.search import search_root as search_root
