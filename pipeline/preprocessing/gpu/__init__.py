"""Preprocessing in GPU memory: logs read, sorted, counted and encoded by cuDF and CuPy.

The design:

1. `frames` holds the differences between pandas with NumPy and cuDF with CuPy; all other modules
use the common API and run on both. 2. `reading` reads clean Parquet and CSV on the device, and
refuses other logs with a reason. 3. A column of ids or categories is dictionary-encoded at once:
codes on the device, distinct values
   on the host, where `pipeline.data.values` types them. All engines read text alike.
4. `log` sorts codes and times on the device, applies the session rules and cuts the rows at the
   same sessions as the CPU engine, so that sums of floats have the same terms in the same order.
5. `shards` counts codes and maps them to indices on the device, by one lookup table per column.
6. Logarithms, sines and sums of floats are computed on the host by the NVTabular workflow of the
   CPU engine: math libraries differ in the last bit. Encoding uses no such function.
7. Statistics, fitted state, report and Parquet files come from the code of the CPU engine: the
   bytes of a file depend on the writer.
8. The CPU engine reads and sorts refused logs, logs with user operators, logs larger than the free
memory and logs of a cluster; its shards of whole sessions move to the device one by one.
"""
