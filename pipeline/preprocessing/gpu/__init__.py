"""Preprocessing in GPU memory: logs read, sorted, counted and encoded by cuDF and CuPy.

The design:

1. `frames` holds what differs between pandas with NumPy and cuDF with CuPy; all other modules are
   written against what the two pairs share, and run on both.
2. `reading` reads clean Parquet and CSV on the device; it refuses any other log with the reason.
3. A column of ids or categories is dictionary-encoded at once: codes on the device, distinct values
   on the host, where `pipeline.data.values` types them. So text has one definition for all engines.
4. `log` sorts codes and times on the device, applies the session rules and cuts the rows at the
   same sessions as the CPU engine, so that sums of floats have the same terms in the same order.
5. `shards` counts codes and turns them into indices on the device, one lookup table a column.
6. Logarithms, sines and sums of floats are computed on the host by the NVTabular workflow of the
   CPU engine: two libraries of mathematics differ in the last bit. Encoding has no such function.
7. Statistics, fitted state, report and Parquet files come from the code of the CPU engine: the
   bytes of a file depend on the writer.
8. A refused log, one with user operators, one larger than the free memory and one that a cluster
   works on are read and sorted by the CPU engine; its shards of whole sessions are moved to the
   device one by one.
"""
