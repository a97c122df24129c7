"""Files, opened so that nothing is followed, hung on or half written, and the user's folders."""
