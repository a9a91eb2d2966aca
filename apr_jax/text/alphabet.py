"""The byte-level alphabet of GPT-2: each byte as one printable character, space as `Ġ`."""

_PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]

# SYMBOLS[byte] is the byte's character.
SYMBOLS = [
    chr(byte) if byte in _PRINTABLE else chr(0x100 + _OTHERS.index(byte)) for byte in range(256)
]
_BYTES = {symbol: byte for byte, symbol in enumerate(SYMBOLS)}


def spell(text: bytes) -> str:
    """The bytes in the alphabet."""
    return "".join(map(SYMBOLS.__getitem__, text))


def unspell(token: str) -> bytes | None:
    """The bytes that the token spells; None if a character is not in the alphabet."""
    try:
        return bytes(map(_BYTES.__getitem__, token))
    except KeyError:
        return None
