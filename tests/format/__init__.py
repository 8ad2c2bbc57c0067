"""Stored bytes of earlier releases, which must restore for ever."""
