#!/bin/sh
cat /srv/greeting /srv/origin
