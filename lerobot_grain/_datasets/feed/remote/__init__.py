"""Readers on other machines: one protocol, and the engines that it runs on."""
