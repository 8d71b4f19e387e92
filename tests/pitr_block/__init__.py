"""Tests of mode pitr_block."""
