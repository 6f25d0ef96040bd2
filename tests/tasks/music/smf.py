"""MIDI files written byte by byte, whole and broken ones."""

from __future__ import annotations

import struct

Event = tuple[int, bytes]


def quantity(number: int) -> bytes:
    """A number of variable length, seven bits a byte."""
    out = [number & 127]
    while number := number >> 7:
        out.append(128 | (number & 127))
    return bytes(reversed(out))


def on(channel: int, pitch: int, velocity: int = 80) -> bytes:
    return bytes([0x90 | channel, pitch, velocity])


def off(channel: int, pitch: int) -> bytes:
    return bytes([0x80 | channel, pitch, 0])


def control(channel: int, number: int, value: int) -> bytes:
    return bytes([0xB0 | channel, number, value])


def program(channel: int, number: int) -> bytes:
    return bytes([0xC0 | channel, number])


def name(text: str) -> bytes:
    raw = text.encode()
    return b"\xff\x03" + quantity(len(raw)) + raw


def tempo(microseconds: int) -> bytes:
    return b"\xff\x51\x03" + microseconds.to_bytes(3, "big")


def meter(numerator: int, power: int) -> bytes:
    return bytes([0xFF, 0x58, 4, numerator, power, 24, 8])


def track(*events: Event) -> bytes:
    """A chunk of events, each with the ticks since the one before."""
    body = b"".join(quantity(delta) + event for delta, event in (*events, (0, b"\xff\x2f\x00")))
    return b"MTrk" + struct.pack(">I", len(body)) + body


def file(form: int, division: int, *tracks: bytes, announced: int | None = None) -> bytes:
    count = len(tracks) if announced is None else announced
    return b"MThd" + struct.pack(">IHHH", 6, form, count, division & 0xFFFF) + b"".join(tracks)


NOTE = track((0, on(0, 60)), (480, off(0, 60)))
