"""One command a file: `command` in deploy/commands/NAME.py is `palimpsest NAME` (with "-" for "_")."""

from __future__ import annotations

SHORT_HELP = {  # in alphabetical order
    "broker": "Install, start, stop and watch the embedded Apache Kafka.",
    "check": "What a learner needs, what is wrong with it, and the way out.",
    "completion": "Complete commands and values in bash, zsh and fish.",
    "consolidate": "Old classes and new ones into one compact network.",
    "dead-letters": "Look at what could not be learnt from, and send it back.",
    "demo": "The main job end to end: produce, learn, compare, register.",
    "erase": "Remove a subject's raw samples from a state.",
    "expand": "Grow the network for the newest classes.",
    "fingerprint": "One SHA-256 over the newest snapshot's state.",
    "learn": "Learn from a stream and keep what was learnt.",
    "models": "List the versions of a model, and which has a role.",
    "predict": "Answer requests with the champion; swap when it changes.",
    "produce": "Send a data set as a stream whose classes change.",
    "promote": "Make a version the champion, if it passes the gate.",
    "r-matrix": "Accuracy on every task after every task (needs ce_task).",
    "report": "Write the learner's page as one HTML file.",
    "restructure": "Do what a learner asks for: consolidations, expansions.",
    "rollback": "Make the version before the champion again.",
    "settings": "Print all settings, and which are fixed for a state.",
    "snapshots": "List the snapshots of a state folder.",
    "status": "Ask a running learner how far and how good it is.",
}
