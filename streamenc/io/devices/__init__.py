"""Microphones, speakers, cameras and screens."""
