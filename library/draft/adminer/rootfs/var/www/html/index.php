<?php
require 'adminer.php';
