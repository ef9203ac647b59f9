"""Errors meant for users: each message is one sentence that says what is wrong and what to do."""


class YuEError(Exception):
    """A mistake or a missing thing that the user can put right; shown without a traceback."""


class LyricsError(YuEError):
    """The lyrics cannot be sung as given: empty, or a section too long for its context."""


class RequestError(YuEError):
    """A setting is out of range or contradicts another one."""


class ReferenceAudioError(YuEError):
    """The reference audio cannot be used."""


class AudioFileError(YuEError):
    """An audio file cannot be read or written."""


class WeightsError(YuEError):
    """Weights are missing, incomplete, corrupt or of another model."""


class MachineError(YuEError):
    """This machine cannot run the request: memory, disk or device."""
