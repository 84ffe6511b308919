//! A CD-ROM image that boots the lab's kernel: Bochs cannot be given one directly.
